"""Seconds and memory of released models, ours against their public code: CAT-Seg L and TIPSv2 L.

    python -m benchmarks.released [--catseg CHECKOUT] [--names 20 150 847] [--rounds 1] [--only catseg tips]
                                  [--json FILE]

Full size, random weights, which both sides read from one file; a picture of 640 x 480. Each case runs in a process of
its own, ours and theirs in turns. "loaded" is that process once the model and the names' embeddings are there, "peak"
the most it ever takes, with compiling; "names" are the seconds of embedding the names, "picture" those of one picture
after a first one, and "CPU" the same on all cores together, which other work on the machine disturbs less. Both sides
have to find the same scores, or the run fails.

- catseg: `--catseg` names a checkout of CAT-Seg. Its CLIP and its aggregator run as they are, with the inference around
  them written out here, since the original's needs detectron2. It needs torch, timm and einops.
- tips: `transformers`' Tipsv2Model, then cosines and labels; the backbone's patches, whole picture, and random
  embeddings in place of names, since a tokenizer is not at hand. Its text tower is timed on 64 prompts.

Float32 on a CPU. Where PyTorch finds a GPU, and JAX too, both run there in bfloat16.
"""

import argparse
import dataclasses
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

from benchmarks.public_code import load_module
from benchmarks.table import shown
from dinov3seg_jax.files import write_whole

# Only the processes of the cases import JAX, NumPy or PyTorch: a process inherits the peak of memory of its parent.

AGREEMENT = {"cpu": 2e-3, "cuda": 5e-2}  # of scores in [0, 1]; what is timed as a pair has to be the same model
HEIGHT, WIDTH = 480, 640
CLIP_L = (768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12)  # embedding, picture, vision tower, text tower
TIPS_L = {"hidden_size": 1024, "num_attention_heads": 16}
PROMPTS, LENGTH = 64, 64
COLUMNS = {
    "model": "model",
    "side": "side",
    "names": "names",
    "names_seconds": "names s",
    "picture_seconds": "picture s",
    "cpu_seconds": "CPU s",
    "loaded_bytes": "loaded MB",
    "peak_bytes": "peak MB",
}


def main() -> None:
    """Make the weights, run every pair, print tables and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catseg", type=Path, help="a checkout of CAT-Seg")
    parser.add_argument("--names", nargs="+", type=int, default=(20, 150, 847), help="classes")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each pair")
    parser.add_argument("--repeats", type=int, default=1, help="timed pictures in a process")
    parser.add_argument("--only", nargs="+", choices=("catseg", "tips"), default=("catseg", "tips"))
    parser.add_argument("--json", type=Path, help="where the measurements go")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options)))
        return
    if "catseg" in options.only and options.catseg is None:
        parser.error("--catseg names a checkout of CAT-Seg; give it, or ask for --only tips")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        for model in options.only:
            _in_process(f"make_{model}", 0, options)
            print(" ".join(f"{title:>10}" for title in COLUMNS.values()))
            for names in options.names:
                for side in options.rounds * ("theirs", "ours"):
                    results.append({"model": model, "side": side} | _in_process(f"{side}_{model}", names, options))
                    print(" ".join(f"{shown(name, results[-1][name]):>10}" for name in COLUMNS), flush=True)
                    if options.json:
                        write_whole(options.json, json.dumps(results, indent=1).encode())
                print(_ratios([row for row in results if row["model"] == model and row["names"] == names]), flush=True)


def _ratios(rows: list[dict[str, Any]]) -> str:
    """Ours over theirs: medians."""

    def median(side: str, name: str) -> float:
        return statistics.median(row[name] for row in rows if row["side"] == side)

    found = {name: median("ours", name) / median("theirs", name) for name in list(COLUMNS)[3:]}
    return "ours / theirs: " + ", ".join(f"{COLUMNS[name]} {ratio:.2f}" for name, ratio in found.items())


def make_catseg(options: argparse.Namespace) -> dict[str, Any]:
    """A file of CAT-Seg's keys, and our conversion of it."""
    import torch

    from dinov3seg_jax.convert.run import convert

    torch.save({"model": _filled(_catseg(options.catseg)).state_dict()}, options.folder / "model_large.pth")
    convert("catseg", [options.folder / "model_large.pth"], options.folder / "catseg")
    return {}


def theirs_catseg(options: argparse.Namespace) -> dict[str, Any]:
    """CAT-Seg's modules, and what its `inference_sliding_window` does with them."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from dinov3seg_jax.text.tokenizer import Tokenizer

    model = _catseg(options.catseg)
    state = torch.load(options.folder / "model_large.pth", mmap=True, weights_only=True)["model"]
    model.load_state_dict(state, assign=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    clip, head = model.sem_seg_head.predictor.clip_model, model.sem_seg_head.predictor.transformer
    taps: dict[int, Any] = {}
    for layer in (7, 15):
        block = clip.visual.transformer.resblocks[layer]
        block.register_forward_hook(lambda _module, _given, out, layer=layer: taps.update({layer: out}))
    pixel_mean = torch.tensor([122.7709383, 116.7460125, 104.09373615], device=device).view(-1, 1, 1)
    pixel_std = torch.tensor([68.5005327, 66.6321579, 70.32316305], device=device).view(-1, 1, 1)
    text: list[Any] = []

    def embed() -> None:
        rows = Tokenizer().tokenize([f"A photo of a {name} in the scene" for name in _names(options.names[0])], 77)
        ids = torch.from_numpy(np.asarray(rows, np.int64)).to(device)
        text[:] = [F.normalize(clip.encode_text(ids), dim=-1)[None, :, None]]

    def grid(x: Any) -> Any:
        return x.permute(0, 2, 1).unflatten(2, (24, 24))

    def segment() -> tuple[Any, Any]:
        picture = _picture()
        loaded = torch.from_numpy(np.asarray(picture.resize((640 * WIDTH // HEIGHT, 640), 2)).copy())
        image = loaded.to(device).permute(2, 0, 1).float()[None]
        square = F.interpolate(image, size=(640, 640), mode="bilinear", align_corners=False)
        unfold, fold = torch.nn.Unfold(384, stride=256), torch.nn.Fold((640, 640), 384, stride=256)
        windows = unfold(square)[0].T.unflatten(1, (3, 384, 384))
        views = torch.cat([windows, F.interpolate(image, size=(384, 384), mode="bilinear", align_corners=False)])
        views = F.interpolate((views - pixel_mean) / pixel_std, size=(336, 336), mode="bilinear", align_corners=False)
        dense = clip.encode_image(views, dense=True)
        early, middle = (taps[layer][1:].permute(1, 0, 2) for layer in (7, 15))
        maps = [grid(dense[:, 1:]), model.upsample1(grid(early)), model.upsample2(grid(middle))]
        logits = head(maps[0], text[0].repeat(5, 1, 1, 1), maps)
        scores = F.interpolate(logits, size=384, mode="bilinear", align_corners=False).sigmoid()
        overall = F.interpolate(scores[-1:], size=(640, 640), mode="bilinear", align_corners=False)
        local = fold(scores[:-1].flatten(1).T) / fold(unfold(torch.ones(1, 1, 640, 640, device=device)))[0]
        blended = F.interpolate((local + overall) / 2, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)
        confidence, labels = blended[0].max(0)
        return labels.cpu().numpy(), confidence.float().cpu().numpy()

    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return _measured("catseg", embed, segment, options)


def ours_catseg(options: argparse.Namespace) -> dict[str, Any]:
    """CAT-Seg by this package, as a user calls it."""
    import numpy as np

    import dinov3seg_jax

    model = dinov3seg_jax.load(options.folder / "catseg", _precision("inference"))
    names = _names(options.names[0])

    def segment() -> tuple[Any, Any]:
        (found,) = model.segment_arrays([np.asarray(_picture())], names)
        return found.labels, found.confidence

    return _measured("catseg", lambda: model.embed(names), segment, options)  # type: ignore[attr-defined]


def make_tips(options: argparse.Namespace) -> dict[str, Any]:
    """A file as `transformers` saves it, and our conversion of it."""
    from dinov3seg_jax.convert.run import convert

    _filled(_tips()).save_pretrained(options.folder / "tips_theirs")
    convert("tips", [options.folder / "tips_theirs/model.safetensors"], options.folder / "tips")
    return {}


def theirs_tips(options: argparse.Namespace) -> dict[str, Any]:
    """`transformers`' towers, cosines, and labels of every pixel."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import Tipsv2Model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Tipsv2Model.from_pretrained(options.folder / "tips_theirs").to(device).eval()
    text = torch.from_numpy(_embeddings(options.names[0])).to(device)
    ids = torch.from_numpy(_prompts()).to(device)

    def embed() -> None:
        model.text_model(input_ids=ids, attention_mask=ids != 0)

    def segment() -> tuple[Any, Any]:
        pixels = np.asarray(_picture().resize((WIDTH // 14 * 14, HEIGHT // 14 * 14), 3), np.float32) / 255
        images = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None]
        patches = model.vision_model(pixel_values=images).last_hidden_state[:, 2:]
        patches = F.normalize(patches, dim=-1).unflatten(1, (HEIGHT // 14, WIDTH // 14))
        scores = (1 + torch.einsum("bhwd,td->bthw", patches, text)) / 2
        scores = F.interpolate(scores, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)
        confidence, labels = scores[0].max(0)
        return labels.cpu().numpy(), confidence.float().cpu().numpy()

    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return _measured("tips", embed, segment, options)


def ours_tips(options: argparse.Namespace) -> dict[str, Any]:
    """The same by this package's encoder and labels."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dinov3seg_jax.inference.views.labels import label_pixels
    from dinov3seg_jax.inference.zero_shot import encode_patches
    from dinov3seg_jax.models.graph import any_values, bind, describe
    from dinov3seg_jax.models.towers import TwoTowers
    from dinov3seg_jax.store.converted import ConvertedFolder

    folder = ConvertedFolder(options.folder / "tips")
    config = folder.config.model
    if jax.default_backend() == "gpu":
        config = dataclasses.replace(config, dtype="bfloat16")
    graph, _ = describe(lambda: TwoTowers(config, rngs=any_values()))
    parameters = {name: jnp.asarray(value) for name, value in folder.arrays().items()}
    text, ids = _embeddings(options.names[0]), _prompts().astype(np.int32)

    @jax.jit
    def score(parameters: Any, pixels: Any, text: Any) -> Any:
        patches = encode_patches(bind(graph, parameters), pixels, "backbone")
        cosines = jnp.einsum("bhwd,td->bthw", patches, text, precision=jax.lax.Precision.HIGHEST)
        return (1 + cosines) / 2

    encode_text = jax.jit(lambda parameters, ids: bind(graph, parameters).encode_text(ids))

    def segment() -> tuple[Any, Any]:
        pixels = np.asarray(_picture().resize((WIDTH // 14 * 14, HEIGHT // 14 * 14), 3), np.float32) / 255
        (scores,) = score(parameters, pixels[None], text)
        return label_pixels(scores, jnp.ones(len(text), bool), HEIGHT, WIDTH)

    return _measured("tips", lambda: jax.block_until_ready(encode_text(parameters, ids)), segment, options)


WORKERS = {
    "make_catseg": make_catseg,
    "theirs_catseg": theirs_catseg,
    "ours_catseg": ours_catseg,
    "make_tips": make_tips,
    "theirs_tips": theirs_tips,
    "ours_tips": ours_tips,
}


def _measured(
    model: str, embed: Callable[[], Any], segment: Callable[[], tuple[Any, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds and memory of both; the scores must be those that the other side left in the folder."""
    import numpy as np

    names_seconds, _, _ = _timed(embed)
    loaded = _now()
    labels, confidence = segment()  # compiles everything
    timed = [_timed(segment) for _ in range(options.repeats)]
    other = options.folder / f"{model}_{options.names[0]}.npz"
    difference = 0.0
    if other.exists():
        with np.load(other) as found:
            difference = float(np.abs(found["confidence"] - confidence).max())
            same = float((found["labels"] == labels).mean())
        limit = AGREEMENT["cuda" if _precision("") else "cpu"]
        if difference > limit:
            raise SystemExit(f"error: scores differ by {difference:.1e} from the other side's; {limit} is allowed")
    else:
        np.savez(other, labels=labels, confidence=confidence)
        same = 1.0
    return {
        "names": options.names[0],
        "names_seconds": names_seconds,
        "picture_seconds": statistics.median(seconds for seconds, _, _ in timed),
        "cpu_seconds": statistics.median(cpu for _, cpu, _ in timed),
        "loaded_bytes": loaded,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "largest_difference": difference,
        "same_labels": same,
    }


def _catseg(checkout: Path) -> Any:
    """CAT-Seg L's modules under the names of its files, on no device's memory yet but for its buffers."""
    import torch

    clip = load_module(checkout / "cat_seg/third_party/model_vpt.py")
    aggregator = load_module(checkout / "cat_seg/modeling/transformer/model.py")
    model, predictor = torch.nn.Module(), torch.nn.Module()
    predictor.clip_model = clip.CLIP(*CLIP_L)
    predictor.transformer = aggregator.Aggregator(
        text_guidance_dim=768, appearance_guidance_dim=768, num_layers=2, pooling_size=(1, 1), pad_len=256
    )
    model.sem_seg_head = torch.nn.Module()
    model.sem_seg_head.predictor = predictor
    model.upsample1 = torch.nn.ConvTranspose2d(1024, 256, kernel_size=2, stride=2)
    model.upsample2 = torch.nn.ConvTranspose2d(1024, 128, kernel_size=4, stride=4)
    return model


def _tips() -> Any:
    import transformers

    return transformers.Tipsv2Model(
        transformers.Tipsv2Config(
            vision_config=TIPS_L | {"num_hidden_layers": 24},
            text_config=TIPS_L | {"num_hidden_layers": 12, "intermediate_size": 4096},
        )
    )


def _filled(model: Any) -> Any:
    """Noise everywhere; matrices keep the size of what they multiply, so that scores differ between pixels."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.02 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
            if ("ln_" in name or "norm" in name) and name.endswith("weight"):
                parameter += 1
    return model.eval()


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"thing number {index}" for index in range(count))


def _embeddings(count: int) -> Any:
    import numpy as np

    rows = np.random.default_rng(1).standard_normal((count, TIPS_L["hidden_size"]), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _prompts() -> Any:
    import numpy as np

    return np.random.default_rng(2).integers(4, 32000, (PROMPTS, LENGTH))


def _picture() -> Any:
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _precision(section: str) -> list[str]:
    """The override that asks for bfloat16 where there is a GPU."""
    import jax

    return [f"{section}.dtype=bfloat16"] if jax.default_backend() == "gpu" else []


def _timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, those of all cores together, and the result."""
    started, before = time.perf_counter(), time.process_time()
    found = run()
    return time.perf_counter() - started, time.process_time() - before, found


def _now() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _in_process(worker: str, names: int, options: argparse.Namespace) -> dict[str, Any]:
    arguments = ["--worker", worker, "--names", names, "--repeats", options.repeats, "--folder", options.folder]
    arguments += ["--catseg", options.catseg] if options.catseg else []
    command = [sys.executable, "-m", "benchmarks.released", *map(str, arguments)]
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "DINOV3SEG_CACHE": str(options.folder / "kept"),
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
