"""DINOv3's backbone here, against Hugging Face's `transformers`, on one machine in one run.

    python -m benchmarks.backbone [--models vits16 vitb16] [--sizes 384] [--batches 1] [--repeats 5] [--json FILE]

It needs the `parity` extra. The arithmetic is float32 on a CPU and bfloat16 on a GPU. Each case runs in processes of
its own, as a first call and a peak of memory can be measured only once in a process:

- pair: both with the same weights, in turns, so that a machine whose speed drifts treats them alike. The ratio of the
  medians (ours / transformers, below 1 is faster) is what to compare; outputs must agree.
  On a machine that has other work too, compare CPU seconds, best with one core for both (`taskset -c 0 python ...`).
- ours, twice: first call with an empty compilation cache, then with the one that this left; and the peak of memory.
- transformers: first call and peak of memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.table import shown
from dinov3seg_jax.files import write_whole

# Only the processes of the cases import JAX or PyTorch: a process inherits the peak of memory of the one it comes from.

MODELS = ("vits16", "vitb16", "vitl16")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}  # of outputs of size about 1 to 10, on random weights
COLUMNS = {
    "model": "model",
    "size": "size",
    "batch": "batch",
    "ours_seconds": "ours s",
    "transformers_seconds": "theirs s",
    "ratio": "ratio",
    "cpu_ratio": "CPU ratio",
    "ours_first_call_seconds": "first call",
    "ours_cached_first_call_seconds": "cached",
    "transformers_first_call_seconds": "theirs",
    "ours_peak_bytes": "peak MB",
    "transformers_peak_bytes": "theirs",
}

Run = Callable[[], Any]


def main() -> None:
    """Time every case, print a table, and write the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=(384, 640), help="sides of the square images, pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 4))
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="where the measurements go")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        case = {"model": options.models[0], "size": options.sizes[0], "batch": options.batches[0]}
        print(json.dumps(WORKERS[options.worker](case, options.repeats)))
        return
    print(" ".join(f"{title:>10}" for title in COLUMNS.values()))
    results = []
    for model in options.models:
        for size in options.sizes:
            for batch in options.batches:
                results.append(measure({"model": model, "size": size, "batch": batch}, options.repeats))
                print(" ".join(f"{shown(name, results[-1][name]):>10}" for name in COLUMNS), flush=True)
                if options.json:
                    write_whole(options.json, json.dumps(results, indent=1).encode())


def measure(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Everything about one case."""
    with tempfile.TemporaryDirectory() as cache:
        first, cached = (_in_process("ours", case, repeats, cache) for _ in range(2))
    theirs = _in_process("transformers", case, repeats)
    return {
        **case,
        **_in_process("pair", case, repeats),
        "ours_first_call_seconds": first["first_call_seconds"],
        "ours_cached_first_call_seconds": cached["first_call_seconds"],
        "ours_peak_bytes": cached["peak_bytes"],
        "ours_compiling_peak_bytes": first["peak_bytes"],
        "transformers_first_call_seconds": theirs["first_call_seconds"],
        "transformers_peak_bytes": theirs["peak_bytes"],
    }


def time_pair(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Both in one process, in turns."""
    import numpy as np
    import torch

    theirs = _their_model(case)
    weights = {key: value.float().numpy(force=True) for key, value in theirs.state_dict().items()}
    runs = {"ours": _our_run(case, weights), "transformers": _their_run(case, theirs)}
    outputs = {name: np.asarray(run()) for name, run in runs.items()}  # and the first calls
    error = float(np.abs(outputs["ours"] - outputs["transformers"]).max())
    if not error <= TOLERANCE[_dtype()]:
        raise RuntimeError(f"the outputs differ by {error:.1e}: this compares different models")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in runs if repeat % 2 else reversed(runs):
            taken[name].append(_seconds(runs[name]))
    wall, cpu = ({name: [pair[clock] for pair in pairs] for name, pairs in taken.items()} for clock in (0, 1))
    found: dict[str, Any] = {
        "device": _device(),
        "dtype": _dtype(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "max_abs_error": error,
    }
    for clock, seconds in (("", wall), ("cpu_", cpu)):
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        found[f"{clock}ratio"] = medians["ours"] / medians["transformers"]
        for name, values in seconds.items():
            found |= {f"{name}_{clock}seconds": medians[name], f"every_{name}_{clock}seconds": values}
    return found


def first_call_ours(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Tracing, compiling (or reading the cache) and one run; then more runs, for the peak."""
    return _first_call(_our_run(case, None), repeats, _our_device_peak)


def first_call_theirs(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """The same; there is nothing to compile."""
    return _first_call(_their_run(case, _their_model(case)), repeats, _their_device_peak)


WORKERS = {"pair": time_pair, "ours": first_call_ours, "transformers": first_call_theirs}


def _first_call(run: Run, repeats: int, device_peak: Callable[[], int]) -> dict[str, Any]:
    first, _ = _seconds(run)
    for _ in range(min(repeats, 2)):
        run()
    kilobytes = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes
    return {"first_call_seconds": first, "peak_bytes": device_peak() or host}


def _our_run(case: dict[str, Any], weights: dict[str, Any] | None) -> Run:
    """`weights`: a state dict of transformers; None: some weights, made without a second copy in memory."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from dinov3seg_jax.convert.tables.huggingface import rules
    from dinov3seg_jax.convert.tables.rules import apply_rules
    from dinov3seg_jax.models.graph import bind, describe
    from dinov3seg_jax.models.presets import VISION
    from dinov3seg_jax.models.vit import VisionTransformer

    dtype = jnp.dtype(_dtype())
    graph, shapes = describe(lambda: VisionTransformer(VISION[case["model"]], dtype=dtype, rngs=nnx.Rngs(0)))
    if weights is None:
        fill = jax.jit(lambda: {name: jnp.full(leaf.shape, 0.01, leaf.dtype) for name, leaf in shapes.items()})
        parameters = jax.block_until_ready(fill())
    else:
        converted = apply_rules(weights, rules(), {name: leaf.shape for name, leaf in shapes.items()})
        parameters = {name: jnp.asarray(value) for name, value in converted.items()}
    images = jnp.moveaxis(jnp.asarray(_images(case)), 1, -1)

    @jax.jit
    def encode(parameters: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        (tokens,) = bind(graph, parameters)(images.astype(dtype))
        patches = tokens.patches.reshape(len(images), -1, tokens.patches.shape[-1])
        return jnp.concatenate([tokens.cls[:, None], tokens.storage, patches], axis=1).astype(jnp.float32)

    return lambda: jax.block_until_ready(encode(parameters, images))


def _their_model(case: dict[str, Any]) -> Any:
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    from dinov3seg_jax.models.presets import VISION

    config = VISION[case["model"]]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = DINOv3ViTModel(
            DINOv3ViTConfig(
                hidden_size=config.dim,
                intermediate_size=int(config.dim * config.ffn_ratio),
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                num_register_tokens=config.storage_tokens,
                attn_implementation="sdpa",
            )
        )
    return model.to(getattr(torch, _dtype())).eval()


def _their_run(case: dict[str, Any], model: Any) -> Run:
    import torch

    images = torch.from_numpy(_images(case)).to(model.device, model.dtype)

    def run() -> Any:
        with torch.inference_mode():
            output = model(images).last_hidden_state.float()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return output.cpu()

    return run


def _images(case: dict[str, Any]) -> Any:
    import numpy as np

    shape = (case["batch"], 3, case["size"], case["size"])
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _dtype() -> str:
    import jax

    return "bfloat16" if jax.default_backend() == "gpu" else "float32"


def _device() -> str:
    import jax

    return jax.devices()[0].device_kind


def _our_device_peak() -> int:
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _their_device_peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _seconds(run: Run) -> tuple[float, float]:
    """On the wall clock, and of CPU time of all threads."""
    started, worked = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - worked


def _in_process(worker: str, case: dict[str, Any], repeats: int, cache: str = "") -> dict[str, Any]:
    arguments = ["--models", case["model"], "--sizes", case["size"], "--batches", case["batch"], "--repeats", repeats]
    environment = os.environ | (
        {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        if cache
        else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    )
    command = [sys.executable, "-m", "benchmarks.backbone", "--worker", worker, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
