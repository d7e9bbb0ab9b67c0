"""Seconds and memory of the head at full size: correlation, late refinement, decoder, labels of every pixel.

    python -m benchmarks.head [--grids 24 40] [--classes 20 171 847 5000] [--repeats 1] [--json FILE]
                              [--catseg CHECKOUT] [--parts]

Random weights and inputs, float32. Each case runs in a process of its own, since a peak of memory can be measured only
once in a process. "before" is that process once JAX, parameters and inputs are there, "added" what its peak is above
that, with compiling. Arithmetic is counted as if nothing were computed twice; the fraction is of what numpy reaches in
a product of 2048 x 2048 matrices, measured before and after each case.

`--catseg` names a checkout of CAT-Seg, whose public PyTorch head then runs all of the classes, without its truncation,
after each case on a 24 x 24 grid, the two in turns. It needs torch, timm and einops beside JAX. Ours also resizes and
labels every pixel; CAT-Seg's head ends with coarse logits. `--parts` times the parts of one chunk.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.public_code import load_module
from benchmarks.table import shown
from dinov3seg_jax.files import write_whole

# Only the processes of the cases import JAX, NumPy or PyTorch: a process inherits the peak of memory of its parent.

CATSEG_GRID = 24  # its windows of 12 have to divide the grid
COLUMNS = {
    "head": "head",
    "grid": "grid",
    "classes": "classes",
    "seconds": "seconds",
    "cpu_seconds": "CPU s",
    "gflops_per_second": "GFLOP/s",
    "fraction": "fraction",
    "before_bytes": "before MB",
    "added_bytes": "added MB",
    "kept": "kept",
}


def main() -> None:
    """Time every case, print a table, and write the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grids", nargs="+", type=int, default=(24, 40), help="cells along a side")
    parser.add_argument("--classes", nargs="+", type=int, default=(20, 171, 847, 5000))
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each case")
    parser.add_argument("--chunk", type=int, default=0, help="classes that run together; 0: as inference chooses")
    parser.add_argument("--kept", type=int, default=256, help="inference.kept_megabytes")
    parser.add_argument("--catseg", type=Path, help="a checkout of CAT-Seg to compare with")
    parser.add_argument("--rounds", type=int, default=1, help="turns of the comparison with CAT-Seg")
    parser.add_argument("--parts", action="store_true", help="time the parts of one chunk instead")
    parser.add_argument("--json", type=Path, help="where the measurements go")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    results: list[dict[str, Any]] = []
    if not options.parts:
        print(" ".join(f"{title:>9}" for title in COLUMNS.values()))
    for grid in options.grids:
        for classes in (0,) if options.parts else options.classes:
            against = bool(options.catseg) and grid == CATSEG_GRID
            heads = ["parts"] if options.parts else options.rounds * ["ours", "catseg"] if against else ["ours"]
            for head in heads:
                results.append(_in_process(head, grid, classes, options))
                _show(results[-1])
                if options.json:
                    write_whole(options.json, json.dumps(results, indent=1).encode())


def measure_ours(options: argparse.Namespace) -> dict[str, Any]:
    """Our head, from patch features to labels."""
    grid, classes = options.grids[0], options.classes[0]
    rates = [_product_rate()]
    head = _Head(grid, options)
    text = head.text(classes)
    length, keep = head.chunks.plan(head.scenes, classes)
    before = _peak()
    head.label(text[: 2 * length], length, keep)  # compiles everything
    times = [_timed(lambda: head.label(text, length, keep)) for _ in range(options.repeats)]
    added = _peak() - before
    rates.append(_product_rate())
    return _summary("ours", grid, classes, times, head.flops(classes), rates, before, added) | {
        "chunk": length,
        "kept": keep,
    }


def measure_catseg(options: argparse.Namespace) -> dict[str, Any]:
    """CAT-Seg's head, from patch features to coarse logits; the arithmetic is ours, which is nearly the same."""
    import numpy as np
    import torch

    grid, classes = options.grids[0], options.classes[0]
    rates = [_product_rate()]
    module = load_module(options.catseg / "cat_seg/modeling/transformer/model.py")
    torch.manual_seed(0)
    head = module.Aggregator(
        text_guidance_dim=768,
        appearance_guidance_dim=768,
        num_layers=2,
        pooling_size=(1, 1),
        feature_resolution=(grid, grid),
        pad_len=0,
    ).eval()
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return torch.from_numpy(generator.standard_normal(shape, np.float32))

    maps = [noise(1, 768, grid, grid), noise(1, 256, 2 * grid, 2 * grid), noise(1, 128, 4 * grid, 4 * grid)]
    text = noise(1, classes, 1, 768)
    before = _peak()

    def run() -> Any:
        with torch.inference_mode():
            return head(maps[0], text, maps)

    times = [_timed(run) for _ in range(options.repeats)]
    added = _peak() - before
    rates.append(_product_rate())
    return _summary("catseg", grid, classes, times, _Head(grid, options).flops(classes), rates, before, added) | {
        "torch_threads": torch.get_num_threads()
    }


def measure_parts(options: argparse.Namespace) -> dict[str, Any]:
    """Each part by itself, on one chunk: milliseconds a class, and what fraction of the products' rate it reaches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dinov3seg_jax.models.correlation import correlate
    from dinov3seg_jax.models.functions import gelu
    from dinov3seg_jax.models.graph import bind
    from dinov3seg_jax.models.scene import Chunk
    from dinov3seg_jax.training.flops import count_flops

    head = _Head(options.grids[0], options)
    length, _ = head.chunks.plan(head.scenes, 847)
    (scene,) = head.scenes
    text, mask = head.text(length)[None], np.ones((1, length), bool)
    chunk = Chunk(jnp.asarray(text), jnp.asarray(mask))
    generator = np.random.default_rng(0)
    maps = generator.standard_normal((1, length, *scene.refined.shape[1:3], head.config.late.dim), np.float32)
    projected = generator.standard_normal((1, length, head.config.late.dim), np.float32)
    sums = jax.jit(lambda p: bind(head.graph, p).late.classes[0].sum_up(maps, projected, mask))(head.parameters)

    def embed(model: Any) -> Any:
        return model.embed_correlation(correlate(scene.refined, chunk.text))

    windowed, shifted = scene.halves[0]
    parts: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {  # how often in a head, and the part
        "embedding": (1, lambda model, x: embed(model)),
        "spatial: window attention": (2, lambda model, x: model.late.spatial[0].windowed.attention(x, windowed)),
        "spatial: shifted attention": (2, lambda model, x: model.late.spatial[0].shifted.attention(x, shifted)),
        "spatial: MLP": (4, lambda model, x: model.late.spatial[0].windowed.ffn(x)),
        "spatial: GELU of the MLP": (0, lambda model, x: gelu(jnp.concatenate(4 * [x], axis=-1))),
        "class: sums": (2, lambda model, x: model.late.classes[0].sum_up(x, projected, mask).products),
        "class: read sums, MLP": (2, lambda model, x: model.late.classes[0](x, projected, sums=sums)),
        "decoder": (1, lambda model, x: model.decoder.decode(x, scene.guided)),
        "decoder: first stage": (0, lambda model, x: model.decoder.stage1.refine(x, scene.guided[0])),
    }
    rate = _product_rate()
    rows = {}
    for name, (times, part) in parts.items():

        def run(parameters: Any, maps: Any, part: Callable[[Any, Any], Any] = part) -> Any:
            return part(bind(head.graph, parameters), maps)

        call = partial(jax.jit(run), head.parameters, maps)
        jax.block_until_ready(call())
        cpu = statistics.median(_timed(call)["cpu_seconds"] for _ in range(7))
        flops = count_flops(run, head.parameters, maps)
        rows[name] = {
            "times": times,
            "cpu_milliseconds_per_class": 1e3 * cpu / length,
            "gflop_per_class": flops / length / 1e9,
            "fraction": flops / cpu / rate["per_cpu_second"],
        }
    return {"head": "parts", "grid": options.grids[0], "chunk": length, "product_rate": rate, "parts": rows}


WORKERS = {"ours": measure_ours, "catseg": measure_catseg, "parts": measure_parts}


class _Head:
    """The full-size head with random parameters, and towers as small as its inputs allow."""

    def __init__(self, grid: int, options: argparse.Namespace):
        import dataclasses

        import jax
        import jax.numpy as jnp
        import numpy as np

        from dinov3seg_jax.config import (
            Config,
            EarlyRefinementConfig,
            InferenceConfig,
            ModelConfig,
            TextConfig,
            VisionConfig,
        )
        from dinov3seg_jax.inference.classes.chunks import ClassChunks
        from dinov3seg_jax.models.chunked import prepare_scene
        from dinov3seg_jax.models.graph import bind, build, initialize
        from dinov3seg_jax.models.scene import ImageFeatures, PriorMaps

        self.size = (16 * grid, 16 * grid)
        self.config = ModelConfig(
            vision=VisionConfig(depth=1, head_blocks=0),
            text=TextConfig(dim=16, depth=1, heads=1, vocab_size=16, context_length=4),
            early=EarlyRefinementConfig(enabled=False),
            spe="vision",
        )
        self.graph, _ = build(self.config)
        drawn = initialize(self.config, jax.random.key(0))
        self.parameters = {name: jnp.asarray(value) for name, value in drawn.items()}
        inference = InferenceConfig(class_chunk=options.chunk, kept_megabytes=options.kept)
        self.chunks = ClassChunks(dataclasses.replace(Config(), model=self.config, inference=inference))
        generator = np.random.default_rng(0)
        shape = (1, grid, grid, self.config.vision.dim)
        maps = [jnp.asarray(generator.standard_normal(shape, np.float32)) for _ in range(4)]
        images = jnp.zeros((1, *self.size, 3), jnp.float32)
        features = ImageFeatures(maps[0], PriorMaps(*maps[1:]))
        self.scenes = (jax.jit(lambda p: prepare_scene(bind(self.graph, p), images, features))(self.parameters),)
        jax.block_until_ready(self.scenes)

    def text(self, classes: int) -> Any:
        """Embeddings of that many names."""
        import numpy as np

        return np.random.default_rng(1).standard_normal((classes, 2 * self.config.vision.dim), np.float32)

    def label(self, text: Any, length: int, keep: bool) -> Any:
        """Labels and confidence of every pixel."""
        from dinov3seg_jax.inference.views.labels import BestClass

        best = BestClass([self.size])
        for chunk in self.chunks.score_scenes(self.parameters, self.scenes, self.size, text, length, keep):
            best.update(chunk.scores, chunk.class_mask, chunk.first)
        return best.results()[0]

    def flops(self, classes: int) -> int:
        """Of the head alone, each class once."""
        import jax

        from dinov3seg_jax.models.chunked import collect, decode, no_sums
        from dinov3seg_jax.models.graph import bind
        from dinov3seg_jax.models.scene import Chunk, Sums
        from dinov3seg_jax.training.flops import count_flops

        def run(parameters: Any) -> Any:
            model, (scene,) = bind(self.graph, parameters), self.scenes
            chunk = Chunk(self.text(1)[None], jax.numpy.ones((1, 1), bool))
            sums: Sums = ()
            kept = None
            for _ in range(self.config.late.layers):
                kept, total = collect(model, scene, chunk, sums, kept, no_sums(self.config.late, scene))
                sums = (*sums, total)
            return decode(model, scene, chunk, sums, kept)

        return classes * count_flops(run, self.parameters)


def _summary(
    head: str,
    grid: int,
    classes: int,
    times: list[dict[str, float]],
    flops: int,
    rates: list[dict[str, float]],
    before: int,
    added: int,
) -> dict[str, Any]:
    seconds = statistics.median(time["seconds"] for time in times)
    cpu = statistics.median(time["cpu_seconds"] for time in times)
    rate = {key: statistics.mean(rate[key] for rate in rates) for key in rates[0]}
    return {
        "head": head,
        "grid": grid,
        "classes": classes,
        "cores": os.cpu_count(),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "every_run": times,
        "gflop": flops / 1e9,
        "gflops_per_second": flops / seconds / 1e9,
        "fraction": flops / seconds / rate["per_second"],
        "fraction_of_cpu_seconds": flops / cpu / rate["per_cpu_second"],
        "product_rate": rate,
        "before_bytes": before,
        "added_bytes": added,
    }


def _product_rate() -> dict[str, float]:
    """Operations that numpy does in a second, and in a second of one core, multiplying 2048 x 2048 float32 matrices."""
    import numpy as np

    matrix = np.random.default_rng(0).random((2048, 2048), np.float32)
    matrix @ matrix
    times = [_timed(lambda: matrix @ matrix) for _ in range(5)]
    operations = 2 * 2048**3
    return {
        "per_second": operations / statistics.median(time["seconds"] for time in times),
        "per_cpu_second": operations / statistics.median(time["cpu_seconds"] for time in times),
    }


def _timed(run: Callable[[], Any]) -> dict[str, float]:
    used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = run()
    if hasattr(result, "block_until_ready"):
        result.block_until_ready()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu}


def _peak() -> int:
    """Bytes; the most that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _in_process(worker: str, grid: int, classes: int, options: argparse.Namespace) -> dict[str, Any]:
    arguments = ["--worker", worker, "--grids", grid, "--classes", classes, "--repeats", options.repeats]
    arguments += ["--chunk", options.chunk, "--kept", options.kept]
    arguments += ["--catseg", options.catseg] if worker == "catseg" else []
    command = [sys.executable, "-m", "benchmarks.head", *map(str, arguments)]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _show(result: dict[str, Any]) -> None:
    if result["head"] != "parts":
        print(" ".join(f"{shown(name, result.get(name, '')):>9}" for name in COLUMNS), flush=True)
        return
    print(f"{result['grid']} x {result['grid']} cells, chunks of {result['chunk']} classes")
    for name, part in result["parts"].items():
        rest = f"{part['cpu_milliseconds_per_class']:7.2f} CPU ms a class {part['fraction']:7.1%} of the products' rate"
        print(f"{part['times']} x {name:28}{rest}", flush=True)


if __name__ == "__main__":
    main()
