"""One training step: seconds, memory, compile time against depth, and how busy the device is.

    python -m benchmarks.train_step [--sizes nano vits16] [--depths 3 6 12] [--repeats 5] [--json FILE]
    python -m benchmarks.train_step --recipes coco_stuff:24gb coco_stuff:80gb [--options model.decoder.packed=True]

It needs no data. The arithmetic is float32 on a CPU and bfloat16 on accelerators, whose batches are larger. Each case
runs in a process of its own, as a peak of memory can be measured only once in a process and a compile must be the
first:

- nano: the quick start's model and step.
- vits16: a ViT-S/16 backbone and a text tower of its width, the rest at nano size, the paper's 384-pixel crops.
- vitl16, for accelerators: the paper's model and setting, with recomputed blocks.
- depth: towers of the first case of so many equal blocks. They are scanned, so the seconds to compile should not rise.
- a recipe, in place of all these: its step as `dinov3seg train --config` would run it, and the memory that `plan` says.

Utilisation is of the device's peak rate in bfloat16, for the model's operations (what is recomputed does not count); it
is left out where that rate is not known, as on CPUs.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.table import shown
from dinov3seg_jax.files import write_whole

# Only the processes of the cases import JAX: a process inherits the peak of memory of the one it comes from.

SIZES = ("nano", "vits16", "vitl16")
COLUMNS = {
    "size": "size",
    "depth": "depth",
    "batch": "batch",
    "step_seconds": "step s",
    "images_per_second": "images/s",
    "tflops": "TFLOP/s",
    "utilisation": "of peak",
    "peak_bytes": "peak MB",
    "planned_bytes": "planned MB",
    "trace_seconds": "trace s",
    "compile_seconds": "compile s",
}


class Case(NamedTuple):
    """What is measured."""

    size: str  # or the recipe
    config: Any
    names: int  # in the class list
    is_recipe: bool


def main() -> None:
    """Time every case, print a table, and write the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=("nano", "vits16"))
    parser.add_argument("--depths", nargs="*", type=int, default=(3, 6, 12), help="blocks of each tower, compiled only")
    parser.add_argument("--recipes", nargs="+", default=(), metavar="RECIPE", help="instead of sizes and depths")
    parser.add_argument("--options", nargs="*", default=(), metavar="NAME=VALUE", help="of all recipes")
    parser.add_argument("--batch", type=int, default=0, help="images a step; 0: what suits the size and the device")
    parser.add_argument("--attention", default="auto", help="the towers' kernel, as in model.attention")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each")
    parser.add_argument("--json", type=Path, help="where the measurements go")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(case_of(options), options.repeats)))
        return
    cases: list[tuple[str, int, int]] = [(size, 0, options.repeats) for size in options.recipes or options.sizes]
    if not options.recipes:
        cases += [(options.sizes[0], depth, 0) for depth in options.depths]
    width = max(10, *(len(name) for name, _, _ in cases))
    print(" ".join(f"{title:>{width}}" for title in COLUMNS.values()))
    results = []
    for name, depth, repeats in cases:
        results.append(_in_process(name, depth, repeats, options))
        print(" ".join(f"{_shown(column, results[-1]):>{width}}" for column in COLUMNS), flush=True)
        if options.json:
            write_whole(options.json, json.dumps(results, indent=1).encode())


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Trace and compile the step of a case, and run it `repeats` times after a first run that does not count."""
    import jax
    import numpy as np

    from dinov3seg_jax.costs.step_memory import abstract_batch, memory_of
    from dinov3seg_jax.models.graph import initialize
    from dinov3seg_jax.training.chips import peak_flops
    from dinov3seg_jax.training.finetune import partition
    from dinov3seg_jax.training.optimizer import make_optimizer
    from dinov3seg_jax.training.program import CompiledStep, describe_step, model_flops
    from dinov3seg_jax.training.sharding import make_mesh
    from dinov3seg_jax.training.step import Batch, TrainState

    config, device = case.config, jax.local_devices()[0]
    run = describe_step(config, make_mesh(1, 1, [device]))
    tokens = np.random.default_rng(0).integers(1, 49000, (case.names, 12), np.int32)
    names = run.described_names(tokens)
    batch = abstract_batch(config, case.names)
    started = time.perf_counter()
    traced = run.step.trace(run.state, run.frozen, names, batch)
    trace_seconds = time.perf_counter() - started
    step = CompiledStep(run.step, run.state, run.frozen, names, batch)  # what is traced already it does not trace again
    found: dict[str, Any] = {
        "size": case.size,
        "depth": config.model.vision.depth,
        "batch": config.train.batch_size,
        "device": device.device_kind,
        "dtype": config.model.dtype,
        "attention": config.model.attention,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "trace_seconds": trace_seconds,
        "compile_seconds": time.perf_counter() - started - trace_seconds,
    }
    if case.is_recipe:
        found["planned_bytes"] = memory_of(config, 1, tokens.shape).total
    if not repeats:
        return found
    placed, frozen_at, everywhere, by_example = run.shardings
    split = partition(initialize(config.model, jax.random.key(0)), config.model, config.train)
    trainable, frozen = jax.device_put(split, (placed.trainable, frozen_at))
    optimizer = jax.jit(make_optimizer(config.train).init, out_shardings=placed.optimizer)(trainable)
    state = TrainState(jax.device_put(np.int32(0), placed.step), trainable, optimizer)
    names = run.names(trainable, frozen, tokens)
    del split, trainable, optimizer
    rng, (b, k) = np.random.default_rng(0), batch.class_ids.shape
    drawn = Batch(
        rng.integers(0, 256, batch.image.shape, np.uint8),
        rng.integers(-1, k, batch.label.shape, np.int32),
        np.stack([rng.permutation(case.names)[:k] for _ in range(b)]).astype(np.int32),
    )
    drawn, names = jax.device_put((drawn, names), (by_example, everywhere))
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, frozen, names, drawn))
        seconds.append(time.perf_counter() - started)
    if not np.isfinite(float(metrics["loss"])):
        raise RuntimeError("the loss is not finite: this times something that cannot train")
    median, peak = statistics.median(seconds[1:]), peak_flops(device.device_kind)
    flops = model_flops(config, run, traced.jaxpr, (run.state, run.frozen, names, batch))
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return found | {
        "step_seconds": median,
        "every_step_seconds": seconds[1:],
        "first_step_seconds": seconds[0],
        "images_per_second": config.train.batch_size / median,
        "flops": flops,
        "tflops": flops / median / 1e12,
        "utilisation": flops / median / peak if peak else None,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) or host,
    }


def case_of(options: argparse.Namespace) -> Case:
    """What a worker is to measure."""
    from dinov3seg_jax.config_files import load_config
    from dinov3seg_jax.data.mixed import trained_names

    if options.recipes:
        [name] = options.recipes
        config = load_config(name, options.options)
        return Case(name, config, len(trained_names(config.data)), is_recipe=True)
    [size] = options.sizes
    config, names = sized(size, options.depths[0] if options.depths else 0, options.batch, options.attention)
    return Case(size, config, names, is_recipe=False)


def sized(size: str, depth: int, batch_size: int, attention: Any) -> tuple[Any, int]:
    """The config of a size, and of how many names its class list is."""
    import jax

    from dinov3seg_jax.config import Config, DataConfig, ModelConfig, TextConfig, TrainConfig
    from dinov3seg_jax.models.presets import NANO, VISION

    fast = jax.default_backend() != "cpu"
    batch, crop, classes = (64, 96, 36) if size == "nano" and fast else (16, 96, 36)
    train = TrainConfig(clip_norm=1.0, hardest_classes=8 if size == "nano" else 0)
    if size == "nano":
        model = NANO
    elif size == "vits16":
        text = TextConfig(dim=384, depth=12, heads=6)
        model = dataclasses.replace(NANO, vision=VISION[size], text=text, remat=fast)
        batch, crop, classes = (16 if fast else 1), 384, 20
    else:
        model = dataclasses.replace(ModelConfig(), remat=True)
        model = dataclasses.replace(
            model,
            late=dataclasses.replace(model.late, remat=True),
            decoder=dataclasses.replace(model.decoder, remat=True),
        )
        train = dataclasses.replace(train, frozen_dtype="bfloat16")
        batch, crop, classes = 4, 384, 171
    if depth:
        towers = {name: dataclasses.replace(getattr(model, name), depth=depth) for name in ("vision", "text")}
        model = dataclasses.replace(model, **towers)
    model = dataclasses.replace(model, attention=attention, dtype="bfloat16" if fast else "float32")
    return Config(
        model=model,
        data=DataConfig(crop_size=crop),
        train=dataclasses.replace(train, batch_size=batch_size or batch),
    ), classes


def _shown(name: str, result: dict[str, Any]) -> str:
    return shown(name, result[name]) if result.get(name) else "-"


def _in_process(name: str, depth: int, repeats: int, options: argparse.Namespace) -> dict[str, Any]:
    arguments = ["--repeats", repeats]
    if options.recipes:
        arguments += ["--recipes", name, "--options", *options.options]
    else:
        arguments += ["--sizes", name, "--batch", options.batch, "--attention", options.attention]
        arguments += ["--depths", *([depth] if depth else [])]
    command = [sys.executable, "-m", "benchmarks.train_step", "--worker", *map(str, arguments)]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
