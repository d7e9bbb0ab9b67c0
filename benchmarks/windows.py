"""Windows of one image as one batch, against a loop over them.

    python -m benchmarks.windows [--repeats 10]

Both encode the same nine 96 x 96 windows of a 160 x 160 image with the nano model's vision tower. The two alternate, so
that a machine whose speed drifts treats them alike; the ratio of the medians is what to compare.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dinov3seg_jax.inference.views.windows import gather, plan_windows
from dinov3seg_jax.models.graph import bind, build, initialize
from dinov3seg_jax.models.presets import NANO

IMAGE, WINDOW, STRIDE = 160, 96, 32


def main() -> None:
    """Time both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    graph, _ = build(NANO)
    parameters = initialize(NANO, jax.random.key(0))
    corners = plan_windows(IMAGE, IMAGE, WINDOW, STRIDE)
    image = jnp.asarray(np.random.default_rng(0).random((1, IMAGE, IMAGE, 3), np.float32))
    windows = gather(image, corners, (WINDOW, WINDOW))
    encode = jax.jit(lambda p, x: bind(graph, p).encode_patches(x).patches)

    def batched() -> jax.Array:
        return encode(parameters, windows)

    def looped() -> list[jax.Array]:
        return [encode(parameters, windows[i : i + 1]) for i in range(len(corners))]

    seconds: dict[str, list[float]] = {"batched": [], "looped": []}
    for repeat in range(repeats + 1):
        for name, run in (("batched", batched), ("looped", looped)):
            taken = _seconds(run)
            if repeat:  # the first call compiles
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "windows": len(corners),
                "batched_seconds": medians["batched"],
                "looped_seconds": medians["looped"],
                "ratio_batched_to_looped": medians["batched"] / medians["looped"],
            }
        )
    )


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
