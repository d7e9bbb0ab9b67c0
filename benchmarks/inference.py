"""Seconds and memory of segmenting pictures, end to end and part by part, alone and against PyTorch.

    python -m benchmarks.inference [--only stages windows pixels classes devices start torch precision] [--repeats 3]
                                   [--model nano] [--names 20 150] [--checkpoint RUN] [--full_size] [--json FILE]
                                   [--dtype bfloat16]

Random weights unless `--checkpoint` names a run; float32 unless `--dtype` says otherwise; square pictures. Each case
runs in a process of its own, since a peak of memory can be measured only once in a process.

- stages: decode, resize, encode, head, label, write, and all of them by `predict`'s own path; `--names`.
- windows: encoding the windows of a batch of pictures at once, against a Python loop over windows, in turns.
- pixels, classes: seconds and peak of memory against the size of the picture, and the length of the list.
- devices: a picture and `--lists` on two devices that share the list, against one, in turns. Virtual ones of a CPU use
  the same cores, so there it says what sharing costs.
- start: a process that segments one picture, with nothing kept on disk and again; only with `--checkpoint`.
- torch: ours against `transformers`' encoder and the same head in plain PyTorch (benchmarks/torch_model.py), eager and
  compiled, on the same device, in turns; ViT-S without early refinement. Each is also run alone for its peak. It needs
  the `parity` extra.
- precision: labels and score with fewer bits, on painted scenes; only with `--checkpoint`.
- `--full_size` instead: the paper's model with 5,000 names (random embeddings) at 640 x 640, and with 150 names on a
  photograph of 4,000 x 3,000 pixels.
"""

import argparse
import dataclasses
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import shown
from dinov3seg_jax.files import write_whole

# Only the processes of the cases import JAX or PyTorch: a process inherits the peak of memory of the one it comes from.

SECTIONS = ("stages", "windows", "pixels", "classes", "devices", "start", "torch", "precision")
MODELS = ("nano", "vits16", "paper")
STATUS = Path("/proc/self/status")
AGREEMENT = 2e-3  # of scores in [0, 1]; what is timed as a pair has to be the same model
PRECISIONS = (("float32", "bfloat16"), ("float32", "int8"), ("bfloat16", "bfloat16"), ("bfloat16", "int8"))
Case = dict[str, Any]


def main() -> None:
    """Run the cases, print what each measured, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--model", choices=MODELS, default="nano", help="of all but torch; default: %(default)s")
    parser.add_argument("--checkpoint", default="", help="a run, in place of random weights")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each case")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 2, 4, 8), help="pictures, for windows")
    parser.add_argument("--sides", nargs="+", type=int, default=(160, 320, 640, 1280), help="pixels, for pixels")
    parser.add_argument("--lists", nargs="+", type=int, default=(10, 100, 1000), help="names, for classes and devices")
    parser.add_argument("--names", nargs="+", type=int, default=(20, 150), help="for stages and torch")
    parser.add_argument("--dtype", default="model", help="of the arithmetic of all but torch and precision")
    parser.add_argument("--image_size", type=int, default=384, help="for torch; windows are two thirds of it")
    parser.add_argument("--scenes", type=int, default=50, help="for precision")
    parser.add_argument("--full_size", action="store_true")
    parser.add_argument("--json", type=Path, help="where the measurements go")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options.case)))
        return
    results: dict[str, list[Case]] = {}
    for section, worker, case in _cases(options):
        found = case | _in_process(worker, case)
        results.setdefault(section, []).append(found)
        print(section, _line(found), flush=True)
        if options.json:
            write_whole(options.json, json.dumps(results, indent=1).encode())


def _cases(options: argparse.Namespace) -> list[tuple[str, str, Case]]:
    """Section, worker and case, in the order in which they run."""
    shared = {
        "model": options.model,
        "checkpoint": options.checkpoint,
        "repeats": options.repeats,
        "dtype": options.dtype,
    }
    if options.full_size:
        whole = shared | {"model": "paper", "repeats": 1}
        return [
            ("full_size", "segment", whole | {"height": 3000, "width": 4000, "names": 150}),
            ("full_size", "segment", whole | {"height": 640, "width": 640, "names": 5000, "random_text": True}),
        ]
    torch = shared | {"image_size": options.image_size, "dtype": "model"}
    small = shared | {"height": 160, "width": 160}
    cases: dict[str, list[tuple[str, Case]]] = {
        "stages": [("stages", shared | {"height": 480, "width": 640, "names": names}) for names in options.names],
        "windows": [("windows", shared | {"batch": batch}) for batch in options.batches],
        "pixels": [
            ("segment", shared | {"height": side, "width": side, "names": 20, "resize": "native", "image_size": side})
            for side in options.sides
        ],
        "classes": [("segment", small | {"names": names, "random_text": True}) for names in options.lists],
        "devices": [("devices", shared | {"names": names, "random_text": True}) for names in options.lists],
        "start": [("start", shared | {"height": 490, "width": 614, "names": 46})] if options.checkpoint else [],
        "torch": [("torch", torch | {"names": names}) for names in options.names],
        "precision": [
            ("precision", shared | {"dtype": dtype, "weights": weights, "scenes": options.scenes})
            for dtype, weights in PRECISIONS
            if options.checkpoint
        ],
    }
    return [(section, worker, case) for section in options.only for worker, case in cases[section]]


def stages(case: Case) -> Case:
    """Every stage by itself, its input ready."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from PIL import Image

    from dinov3seg_jax.data.images import read_image
    from dinov3seg_jax.inference.result import Segmentation
    from dinov3seg_jax.inference.views.labels import BestClass
    from dinov3seg_jax.inference.views.local_global import resize_image

    model, names = _segmenter(case), _names(case["names"])
    options, patch = model.config.inference, model.config.model.vision.patch_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        Image.fromarray(_picture(case)).save(path, quality=90)
        picture = read_image(path)
        pixels = jnp.asarray(resize_image(picture, options, patch)[None])
        text = model.embed(names)
        chunks = model.chunks
        scenes = jax.block_until_ready(chunks.programs.start(model.parameters, pixels))
        plan = chunks.plan(scenes, len(names))

        def score() -> list[Any]:
            return list(chunks.score_scenes(model.parameters, scenes, pixels.shape[1:3], text, *plan))

        def label() -> Any:
            best = BestClass([picture.shape[:2]])
            for chunk in scored:
                best.update(chunk.scores, chunk.class_mask, chunk.first)
            return best.results()[0]

        scored = score()
        labels, confidence = label()
        result = Segmentation(labels, confidence, names, picture)
        runs = {
            "decode": lambda: read_image(path),
            "resize": lambda: resize_image(picture, options, patch),
            "encode": lambda: jax.block_until_ready(chunks.programs.start(model.parameters, pixels)),
            "head": lambda: jax.block_until_ready([chunk.scores for chunk in score()]),
            "label": label,
            "write": lambda: result.save(folder, "picture"),
            "everything": lambda: model.segment(path, names).save(folder, "whole"),
        }
        seconds, _ = _in_turns(runs, max(case["repeats"], 5))
    parts = sum(value for name, value in seconds.items() if name != "everything")
    return {"seconds": seconds, "share": {name: seconds[name] / parts for name in runs if name != "everything"}} | {
        "images_per_second": 1 / seconds["everything"],
        "picture_bytes": int(np.prod(picture.shape)),
        **_device_peak(),
    }


def windows(case: Case) -> Case:
    """All windows of a batch in one call of a program, against one call for each window."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dinov3seg_jax.inference.views.windows import gather, plan_windows
    from dinov3seg_jax.models.graph import bind, build

    model = _segmenter(case)
    options = model.config.inference
    graph, _ = build(model.config.model)
    size = options.image_size
    corners = plan_windows(size, size, options.window, options.stride)
    images = jnp.asarray(np.random.default_rng(0).random((case["batch"], size, size, 3), np.float32))
    cut = gather(images, corners, (options.window,) * 2)
    encode = jax.jit(lambda parameters, views: bind(graph, parameters).encode_patches(views).patches)
    parts = [jax.block_until_ready(cut[index : index + 1]) for index in range(len(cut))]
    seconds, cpu = _in_turns(
        {
            "batched": lambda: jax.block_until_ready(encode(model.parameters, cut)),
            "looped": lambda: [jax.block_until_ready(encode(model.parameters, part)) for part in parts],
        },
        max(case["repeats"], 5),
    )
    return {
        "window_batch": len(cut),
        "seconds": seconds,
        "images_per_second": case["batch"] / seconds["batched"],
        "looped_images_per_second": case["batch"] / seconds["looped"],
        "ratio_batched_to_looped": seconds["batched"] / seconds["looped"],
        "cpu_ratio_batched_to_looped": cpu["batched"] / cpu["looped"],
    }


def segment(case: Case) -> Case:
    """One picture and one list of names, from bytes to labels: the first time, again, and the peak."""
    model, names = _segmenter(case), _names(case["names"])
    if case.get("random_text"):
        _draw_text(model, len(names))
    picture, before, worked = _picture(case), _forget_peak(), time.process_time()
    first, first_cpu = _seconds(lambda: model.segment(picture, names)), time.process_time() - worked
    again = [_seconds(lambda: model.segment(picture, names)) for _ in range(case["repeats"] if first < 120 else 0)]
    return {
        "first_seconds": first,
        "first_cpu_seconds": first_cpu,
        "seconds": statistics.median(again) if again else None,
        "weights_bytes": _weights_bytes(model),
        "before_bytes": before,
        "peak_bytes": _peak(),
        **_device_peak(),
    }


def on_devices(case: Case) -> Case:
    """One picture and one list of names on one device, and on two that share the list."""
    import jax
    import numpy as np

    if len(jax.devices()) < 2:
        return {"left_out": "there is one device"}
    names = _names(case["names"])
    models = {count: _segmenter(case, jax.devices()[:count]) for count in (1, 2)}
    for model in models.values():
        _draw_text(model, len(names))
    side = models[1].config.inference.image_size
    picture = _picture({"height": side, "width": side})
    labels = [np.asarray(model.segment(picture, names).labels) for model in models.values()]
    runs: dict[str, Callable[[], Any]] = {
        str(count): functools.partial(model.segment, picture, names) for count, model in models.items()
    }
    seconds, cpu = _in_turns(runs, case["repeats"])
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "ratio_two_to_one": seconds["2"] / seconds["1"],
        "equal_labels": float((labels[0] == labels[1]).mean()),
        "names_found": len(np.unique(labels[0])),
    }


def start(case: Case) -> Case:
    """`predict.py` on one picture, until the process ends: nothing kept on disk yet, and again."""
    from PIL import Image

    taken: dict[str, list[float]] = {"cold": [], "warm": []}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        Image.fromarray(_picture(case)).save(path)
        command = [sys.executable, "predict.py", "--checkpoint", case["checkpoint"], "--image", str(path)]
        command += ["--classes", ", ".join(_names(case["names"])), "--out", f"{folder}/out"]
        for repeat in range(case["repeats"]):
            environment = inherited | {"DINOV3SEG_CACHE": f"{folder}/cache{repeat}"}
            for seconds in taken.values():
                started = time.perf_counter()
                subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
                seconds.append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {"seconds": medians, "ratio_warm_to_cold": medians["warm"] / medians["cold"]}


def torch_pair(case: Case) -> Case:
    """Ours, PyTorch's eager mode, and its compiler where it works; and the peak of each alone."""
    alone = {name: _in_process("torch_alone", case | {"who": name}) for name in ("ours", "eager")}
    runs, notes = _pair(case, ("ours", "eager", "compiled"))
    outputs = {name: run() for name, run in runs.items()}
    errors = {name: float(abs(output - outputs["ours"]).max()) for name, output in outputs.items()}
    if not max(errors.values()) <= AGREEMENT:
        raise RuntimeError(f"the scores differ, {errors}: this compares different models")
    seconds, cpu = _in_turns(runs, case["repeats"])
    theirs = [name for name in runs if name != "ours"]
    return notes | {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "ratio": {name: seconds["ours"] / seconds[name] for name in theirs},
        "cpu_ratio": {name: cpu["ours"] / cpu[name] for name in theirs},
        "max_abs_error": max(errors.values()),
        "score_deviation": float(outputs["ours"].std()),
        **{f"{name}_{key}": value for name, found in alone.items() for key, value in found.items()},
    }


def torch_alone(case: Case) -> Case:
    """The peak of one of them; "added" is above what parameters and libraries take."""
    runs, _ = _pair(case, (case["who"],))
    before = _forget_peak()
    first = _seconds(runs[case["who"]])
    return {"first_seconds": first, "peak_bytes": _peak(), "added_bytes": _peak() - before}


def precision(case: Case) -> Case:
    """Labels and scores with fewer bits, beside those of float32."""
    import numpy as np

    from dinov3seg_jax.data.datasets import open_dataset
    from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores

    exact, rough = _segmenter(case | {"dtype": "float32", "weights": "float32"}), _segmenter(case)
    dataset = open_dataset(exact.config.data.eval)
    matrices = [ConfusionMatrix(len(dataset.classes)) for _ in range(2)]
    equal, seconds = [], []
    for index in range(case["scenes"]):
        example = dataset.source[index]
        results = []
        for model, matrix in zip((exact, rough), matrices, strict=True):
            started = time.perf_counter()
            results.append(model.segment(example["image"], dataset.classes).labels)
            seconds.append(time.perf_counter() - started)
            matrix.add(results[-1], example["label"])
        equal.append(float((results[0] == results[1]).mean()))
    of_exact, of_rough = (scores(matrix.counts, dataset.seen) for matrix in matrices)
    keys = ("miou", "seen_miou", "unseen_miou")
    return {
        "equal_labels": float(np.mean(equal)),
        "exact": {key: of_exact[key] for key in keys},
        "difference": {key: of_rough[key] - of_exact[key] for key in keys},
        "exact_weights_bytes": _weights_bytes(exact),
        "weights_bytes": _weights_bytes(rough),
        "ratio_of_seconds": statistics.median(seconds[1::2]) / statistics.median(seconds[::2]),
    }


WORKERS = {
    "stages": stages,
    "windows": windows,
    "segment": segment,
    "devices": on_devices,
    "start": start,
    "torch": torch_pair,
    "torch_alone": torch_alone,
    "precision": precision,
}

# Of XLA, which reads them once, when JAX starts. Elsewhere than on a CPU they change nothing.
FLAGS = {"devices": "--xla_force_host_platform_device_count=2"}


def _draw_text(model: Any, count: int) -> None:
    """Random rows for names: thousands of prompts would take longer than the picture."""
    import numpy as np

    rows = np.random.default_rng(1).standard_normal((count, 2 * model.config.model.vision.dim), np.float32)
    model.embed, model.accept = lambda names: rows, lambda asked: asked


def _segmenter(case: Case, devices: Sequence[Any] = ()) -> Any:
    """A model that is ready, of the case's checkpoint or with random weights; devices: as for `Segmenter`."""
    from dinov3seg_jax.config import Config, InferenceConfig, ModelConfig, TextConfig
    from dinov3seg_jax.inference.segmenter import Segmenter
    from dinov3seg_jax.models import presets

    sizes = {"nano": (160, 96, 32), "vits16": (384, 256, 128), "paper": (640, 384, 128)}[case["model"]]
    inference = InferenceConfig(image_size=sizes[0], window=sizes[1], stride=sizes[2])
    known = {field.name for field in dataclasses.fields(InferenceConfig)} & case.keys()
    options = {name: case[name] for name in known}
    if case["checkpoint"]:
        from dinov3seg_jax.inference.load import load

        return load(
            case["checkpoint"], [f"inference.{name}={value}" for name, value in options.items()], devices=devices
        )
    models = {
        "nano": presets.NANO,
        "paper": ModelConfig(),
        "vits16": ModelConfig(
            vision=dataclasses.replace(presets.VISION["vits16"], head_blocks=0, layerscale_init=1.0),
            text=TextConfig(dim=64, depth=1, heads=1),
            early=dataclasses.replace(ModelConfig().early, enabled=False),
            spe="vision",
        ),
    }
    config = Config(model=models[case["model"]], inference=dataclasses.replace(inference, **options))
    return Segmenter(config, _random_parameters(config.model), devices)


def _random_parameters(model: Any) -> dict[str, Any]:
    """Array by array, so that no model is ever held twice."""
    import jax.numpy as jnp
    import numpy as np

    from dinov3seg_jax.models.graph import build

    generator = np.random.default_rng(0)

    def draw(name: str, leaf: Any) -> Any:
        shape = leaf.shape
        if name.endswith("/kernel"):
            inputs = shape[-2] * (shape[0] * shape[1] if len(shape) == 4 else 1)
            return jnp.asarray(generator.standard_normal(shape, np.float32) * np.float32(inputs**-0.5))
        if name.endswith(("scale", "ls1", "ls2", "periods", "log_gain")):
            return jnp.ones(shape, leaf.dtype)
        return jnp.asarray(generator.standard_normal(shape, np.float32) * np.float32(0.02))

    return {name: draw(name, leaf) for name, leaf in build(model)[1].items()}


def _pair(case: Case, who: Sequence[str]) -> tuple[dict[str, Callable[[], Any]], Case]:
    """Functions from nothing to scores, on the same picture, names and weights."""
    import jax
    import numpy as np

    side = case["image_size"]
    model = _segmenter(case | {"model": "vits16", "checkpoint": "", "window": side * 2 // 3, "stride": side // 3})
    text = np.random.default_rng(1).standard_normal((case["names"], 2 * model.config.model.vision.dim), np.float32)
    images = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    runs: dict[str, Callable[[], Any]] = {}
    notes: Case = {"cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}
    encoder, weights = _torch_encoder(model) if set(who) - {"ours"} else (None, {})
    parameters = model.parameters | weights
    if "ours" in who:

        def ours() -> Any:
            chunks = list(model.chunks(parameters, images, text))
            return np.concatenate([np.asarray(chunk.scores) for chunk in chunks], axis=1)[:, : len(text)]

        runs["ours"] = ours
    if encoder is not None:
        import torch

        from benchmarks.torch_model import TorchModel

        head = {
            name: np.asarray(value)
            for name, value in parameters.items()
            if not name.startswith(("vision/", "text/", "early/"))
        }
        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        if device == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as JAX
        theirs = TorchModel(model.config, encoder, head).eval().to(device)
        given = torch.from_numpy(images).to(device), torch.from_numpy(text).to(device)

        def run(module: Any) -> Any:
            with torch.no_grad():  # which its compiler takes better than inference_mode
                return module(*given).numpy(force=True)

        notes |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
        if "eager" in who:
            runs["eager"] = lambda: run(theirs)
        if "compiled" in who:
            compiled = torch.compile(theirs)
            try:
                run(compiled)
                runs["compiled"] = lambda: run(compiled)
            except Exception as error:  # whatever its compiler or the machine's C++ compiler raises
                notes["compiled_failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return runs, notes


def _torch_encoder(model: Any) -> tuple[Any, Any]:
    """`transformers`' DINOv3 with random weights, and these weights under our names."""
    import jax.numpy as jnp

    from benchmarks.backbone import _their_model
    from dinov3seg_jax.convert.tables.huggingface import rules
    from dinov3seg_jax.convert.tables.rules import apply_rules

    prefix = "vision/backbone/"
    theirs = _their_model({"model": "vits16"})
    state = {key: value.float().numpy(force=True) for key, value in theirs.state_dict().items()}
    shapes = {
        name.removeprefix(prefix): value.shape for name, value in model.parameters.items() if name.startswith(prefix)
    }
    converted = apply_rules(state, rules(), shapes)
    return theirs, {prefix + name: jnp.asarray(value) for name, value in converted.items()}


def _picture(case: Case) -> Any:
    """A smooth one, as photographs are."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((case["width"], case["height"]), Image.Resampling.BICUBIC))


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"thing number {index}" for index in range(count))


def _weights_bytes(model: Any) -> int:
    return sum(value.nbytes for value in model.parameters.values())


def _in_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each, on the clock and of CPU time, after a call that compiles.

    They take turns, so that a machine whose speed drifts treats them alike.
    """
    for run in runs.values():
        run()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(max(repeats, 1)):
        for name in runs if repeat % 2 else reversed(runs):
            worked = time.process_time()
            taken[name].append((_seconds(runs[name]), time.process_time() - worked))
    wall, cpu = ({name: statistics.median(pair[i] for pair in pairs) for name, pairs in taken.items()} for i in (0, 1))
    return wall, cpu


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _peak() -> int:
    """Bytes; the most that this process has held, since `_forget_peak` where the system can forget."""
    if STATUS.exists():
        return 1024 * int(STATUS.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _device_peak() -> Case:
    """The most that the device's own memory has held, where it has one that counts."""
    import jax

    held = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"device_peak_bytes": held} if held else {}


def _forget_peak() -> int:
    """Bytes that the process holds now; what it held while it was setting up no longer counts, on Linux."""
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")
    return _peak()


def _in_process(worker: str, case: Case) -> Case:
    """Run a worker, with no compiled programs on disk."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "DINOV3SEG_CACHE": "off"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS.get(worker, '')}".strip()
    command = [sys.executable, "-m", "benchmarks.inference", "--worker", worker, "--case", json.dumps(case)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _line(found: Case) -> str:
    flat = {
        f"{key}.{inner}" if inner else key: value
        for key, values in found.items()
        for inner, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    return " ".join(f"{key}={shown(key, value)}" for key, value in flat.items() if value not in ("", None))


if __name__ == "__main__":
    main()
