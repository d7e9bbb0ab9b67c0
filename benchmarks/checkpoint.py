"""Bytes and seconds of a save, with random weights: frozen parameters stored once, or in every step as before.

    python -m benchmarks.checkpoint --out FOLDER [--config coco_stuff] [--whole]

The folder must not exist; it is deleted in the end. The paper's model takes 11 GB of memory, with `--whole` 17 GB.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.models.graph import build
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.finetune import join, partition
from dinov3seg_jax.training.optimizer import make_optimizer


def main() -> None:
    """Save two steps and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="coco_stuff")
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    config = load_config(options.config)
    _, described = build(config.model)
    parts = jax.eval_shape(lambda whole: partition(whole, config.model, config.train), described)
    rng = np.random.default_rng(0)
    trainable, frozen = jax.tree.map(lambda leaf: draw(rng, leaf), parts)
    optimizer = jax.tree.map(lambda leaf: draw(rng, leaf), jax.eval_shape(make_optimizer(config.train).init, parts[0]))
    print(f"trains {gigabytes(trainable)}, frozen {gigabytes(frozen)}, optimiser {gigabytes(optimizer)}")
    options.out.mkdir(parents=True)
    checkpoints = Checkpoints(options.out, keep=1)
    if not options.whole:
        timed("frozen, once", lambda: checkpoints.share(frozen), checkpoints, options.out / "frozen")
    for step in (1, 2):
        parameters = join(trainable, frozen) if options.whole else trainable
        timed(
            f"step {step}",
            lambda step=step, parameters=parameters: checkpoints.save(
                step, parameters, optimizer, {"train_seconds": 1}
            ),
            checkpoints,
            options.out / "checkpoints" / str(step),
        )
    checkpoints.close()
    shutil.rmtree(options.out)


def draw(rng: np.random.Generator, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Random floats of about one size, which compress as trained weights do; zeros of any other type."""
    if leaf.dtype != jnp.float32:
        return jnp.zeros(leaf.shape, leaf.dtype)
    bits = rng.integers(0, 2**32, leaf.shape, np.uint32)
    return jnp.asarray(((bits & np.uint32(0x807FFFFF)) | np.uint32(0x3C000000)).view(np.float32))


def timed(title: str, begin: Any, checkpoints: Checkpoints, folder: Path) -> None:
    """Print how long a save kept the run waiting, how long it went on after that, and what lies on the disk."""
    started = time.perf_counter()
    begin()
    waited = time.perf_counter() - started
    checkpoints.wait()
    seconds = time.perf_counter() - started - waited
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{title}: {size / 1e9:.2f} GB; the run waits {waited:.1f} s, and {seconds:.1f} s go by in the background")


def gigabytes(tree: Any) -> str:
    """The size of all arrays of a tree."""
    return f"{sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
