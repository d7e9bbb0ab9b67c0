"""Files of the released sizes, filled with noise: how long they take, how much memory, and that nothing is lost.

Each conversion runs as a command of its own, and its seconds and its peak memory are printed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax.store import safetensors
from dinov3seg_jax.store.converted import WEIGHTS_FILE, read_manifest
from tests.convert.files import FIXTURES, LAYOUTS, drawn, stream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of the memory is read from Linux"),
]

# Linux's own peak of this program: getrusage's begins with that of the program that started it.
MEASURED = """
import json, re, sys, time
import dinov3seg_jax.convert.run  # which the command imports when it knows what it is asked
from convert.__main__ import main
def peak():
    return 1024 * int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
idle, started = peak(), time.perf_counter()
main(sys.argv[1:])
print(json.dumps({"seconds": time.perf_counter() - started, "idle": idle, "peak": peak()}))
"""
WITH_TORCH = "import torch\n" + MEASURED
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n" + MEASURED
COPIES = 1.3  # of the largest tensor
TRACING = 64 * 2**20  # what describing the model takes
NARROW = 16  # the largest backbone at a sixteenth of its width

CASES = {
    "vitl16 with dinov3.txt": ("dinotxt", ["vitl16", "dinotxt_head_and_text_only"]),
    "tipsv2_b14": ("tips", ["tipsv2_b14"]),
    "tipsv2_l14": ("tips", ["tipsv2_l14"]),
    "tipsv2_so400m14": ("tips", ["tipsv2_so400m14"]),
    "sam_vit_l": ("sam", ["sam_vit_l_image_encoder"]),
}
ONLY_SAFETENSORS = {"tipsv2_g14": ("tips", ["tipsv2_g14"])}  # 6 GB, which torch would hold twice


def convert(kind: str, files: list[Path], out: Path, *options: str, script: str = MEASURED) -> dict[str, float]:
    command = [sys.executable, "-c", script, kind, "--source", *map(str, files), "--out", str(out), *options]
    done = subprocess.run(command, cwd=FIXTURES.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def report(capsys, what: str, out: Path, measured: dict[str, float]) -> None:
    size = (out / WEIGHTS_FILE).stat().st_size
    with capsys.disabled():
        print(
            f"\n{what}: {size / 2**20:.0f} MiB in {measured['seconds']:.1f} s, "
            f"{(measured['peak'] - measured['idle']) / 2**20:.0f} MiB above the {measured['idle'] / 2**20:.0f} MiB "
            "of the idle program"
        )


def largest_tensor(keys: dict[str, list[int]]) -> int:
    """In bytes of float32."""
    return 4 * max(int(np.prod(shape)) for shape in keys.values())


def assert_nothing_lost(out: Path, keys: dict[str, list[int]]) -> None:
    """As many values as the source has, and the largest tensors of every block looked up by hand."""
    path = out / WEIGHTS_FILE
    entries = safetensors.read_header(path)
    arrays = {name: safetensors.map_tensor(path, entry) for name, entry in entries.items()}
    used = {
        key: shape
        for key, shape in keys.items()
        if not re.search("bias_mask$|local_cls|vision_encoder.mask_token", key)
    }
    assert sum(value.size for value in arrays.values()) == sum(int(np.prod(shape)) for shape in used.values())
    checked = 0
    for key, shape in used.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(attn\.qkv|mlp\.fc1|mlp\.w1|mlp\.w3|mlp\.lin2)\.weight", key)
        if not match or "vision/backbone/norm/scale" not in arrays:
            continue
        block, layer = int(match[1]), match[2]
        value, start = drawn(key, shape), "vision/backbone/blocks/"
        if layer == "attn.qkv":
            ours = np.concatenate(
                [arrays[f"{start}attention/{part}/kernel"][block].T for part in ("query", "key", "value")]
            )
        else:
            name = {"mlp.fc1": "up", "mlp.w1": "gate", "mlp.w3": "down"}[layer]
            ours = arrays[f"{start}ffn/{name}/kernel"][block].T
        np.testing.assert_array_equal(ours, value)
        checked += 1
    assert checked or "sam/pos_embed" in arrays or "vision/cls_second" in arrays


@pytest.mark.parametrize("case", CASES | ONLY_SAFETENSORS)
def test_safetensors(tmp_path, capsys, case):
    kind, layouts = (CASES | ONLY_SAFETENSORS)[case]
    files, keys = [], {}
    for name in layouts:
        keys |= LAYOUTS[name]
        shapes = LAYOUTS[name]
        files.append(
            stream(tmp_path / f"{name}.safetensors", shapes, lambda key, shapes=shapes: drawn(key, shapes[key]))
        )
    measured = convert(kind, files, tmp_path / "out")
    report(capsys, f"{case}, .safetensors", tmp_path / "out", measured)
    assert_nothing_lost(tmp_path / "out", keys)
    assert measured["peak"] - measured["idle"] < COPIES * largest_tensor(keys) + TRACING


def test_cafedino(tmp_path, capsys):
    keys, out = LAYOUTS["cafedino"], tmp_path / "out"
    file = stream(tmp_path / "cafedino.safetensors", keys, lambda key: drawn(key, keys[key]))
    measured = convert("cafedino", [file], out)
    report(capsys, "cafedino, .safetensors", out, measured)
    arrays = {
        name: safetensors.map_tensor(out / WEIGHTS_FILE, entry)
        for name, entry in safetensors.read_header(out / WEIGHTS_FILE).items()
    }
    unused = 2 * (128 * 128 + 128) + 2 - 1  # AnyUp's values and outputs, two counters; and our locality
    used = {key: shape for key, shape in keys.items() if not key.endswith("bias_mask")}
    assert sum(value.size for value in arrays.values()) == sum(int(np.prod(shape)) for shape in used.values()) - unused
    for number in range(6):
        key = f"aggregator.{number}.spatial_agg.swin2.attn.q.weight"
        ours = arrays["layers/spatial/shifted/attention/query/kernel"][number]
        np.testing.assert_array_equal(ours.T, drawn(key, keys[key]))
    assert measured["peak"] - measured["idle"] < COPIES * largest_tensor(keys) + TRACING


@pytest.mark.parametrize("case", CASES)
def test_pth(tmp_path, capsys, case):
    torch = pytest.importorskip("torch")
    kind, layouts = CASES[case]
    files, keys = [], {}
    for name in layouts:
        keys |= LAYOUTS[name]
        path = tmp_path / f"{name}.pth"
        torch.save({key: torch.from_numpy(drawn(key, shape)) for key, shape in LAYOUTS[name].items()}, path)
        files.append(path)
    measured = convert(kind, files, tmp_path / "out", script=WITH_TORCH)
    report(capsys, f"{case}, .pth", tmp_path / "out", measured)
    assert_nothing_lost(tmp_path / "out", keys)
    # The loader maps the file, whose pages count as memory until they are needed for something else.
    mapped = sum(file.stat().st_size for file in files)
    assert measured["peak"] - measured["idle"] < mapped + COPIES * largest_tensor(keys) + TRACING


def test_the_largest_backbone_in_shards_at_reduced_width(tmp_path, capsys):
    """All 40 blocks under Hugging Face's keys, in six files."""
    narrow = {
        key: [n // NARROW if n in (4096, 8192) else n for n in shape] for key, shape in LAYOUTS["hf_vit7b16"].items()
    }
    keys, where = sorted(narrow), {}
    for number in range(6):
        name = f"model-{number + 1:05}-of-00006.safetensors"
        shard = {key: narrow[key] for key in keys[number::6]}
        stream(tmp_path / name, shard, lambda key: drawn(key, narrow[key]))
        where |= dict.fromkeys(shard, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    measured = convert("dinov3", [tmp_path], tmp_path / "out", "--config.vision.heads=2")
    report(capsys, "vit7b16 at a sixteenth of its width, six shards", tmp_path / "out", measured)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.model["vision"]["depth"], manifest.model["vision"]["dim"]) == (40, 256)
    entry = safetensors.read_header(tmp_path / "out" / WEIGHTS_FILE)["vision/backbone/blocks/ffn/gate/kernel"]
    gates = safetensors.map_tensor(tmp_path / "out" / WEIGHTS_FILE, entry)
    for block in range(40):
        key = f"layer.{block}.mlp.gate_proj.weight"
        np.testing.assert_array_equal(gates[block].T, drawn(key, narrow[key]))


CLIP_CASES = {
    "CAT-Seg B": ("catseg", "catseg_model_vitb"),
    "CAT-Seg L": ("catseg", "catseg_model_vitl"),
    "CLIP B/16": ("clip", "clip_vitb16"),
    "CLIP L/14": ("clip", "clip_vitl14_336"),
}
CLIP_SCALARS = ("input_resolution", "context_length", "vocab_size")
HALVES = r"(?:.*\.)?(?:conv1\.weight|(?:attn|mlp)\..*|(?:text_)?proj(?:ection)?)"  # what OpenAI keeps in float16
IN_CATSEG = r"(?:sem_seg_head\.predictor\.clip_model\.)?"


def dtypes_of_clip(kind: str, keys: dict[str, list[int]]) -> dict[str, str]:
    """CAT-Seg's files are float32 throughout."""
    halves = {key: "float16" for key in keys if kind == "clip" and re.fullmatch(HALVES, key)}
    return halves | {key: "int64" for key in keys if key in CLIP_SCALARS}


def assert_clip_kept(out: Path, keys: dict[str, list[int]], dtypes: dict[str, str]) -> None:
    """As many values as the source has, and values and widest layers of every block of both towers, bit for bit."""
    path = out / WEIGHTS_FILE
    arrays = {name: safetensors.map_tensor(path, entry) for name, entry in safetensors.read_header(path).items()}
    used = {key: shape for key, shape in keys.items() if not key.endswith(("attn_mask", *CLIP_SCALARS))}
    assert sum(value.size for value in arrays.values()) == sum(int(np.prod(shape)) for shape in used.values())
    checked = 0
    for key, shape in used.items():
        block = rf"{IN_CATSEG}(visual\.)?transformer\.resblocks\.(\d+)\.(attn\.(?:in|v)_proj_weight|mlp\.c_fc\.weight)"
        if not (match := re.fullmatch(block, key)):
            continue
        given = drawn(key, shape).astype(dtypes.get(key, "float32")).astype(np.float32)
        place = "ffn/up" if match[3].startswith("mlp") else "attention/value"
        ours = arrays[f"{'vision' if match[1] else 'text'}/blocks/{place}/kernel"][int(match[2])]
        np.testing.assert_array_equal(ours.T, given[-ours.shape[1] :])
        checked += 1
    assert checked == 2 * sum(len(arrays[f"{half}/blocks/ffn/up/kernel"]) for half in ("vision", "text"))


@pytest.mark.parametrize("case", CLIP_CASES)
def test_clip_in_safetensors(tmp_path, capsys, case):
    kind, layout = CLIP_CASES[case]
    keys = LAYOUTS[layout]
    dtypes = dtypes_of_clip(kind, keys)
    assert (kind == "clip") == ("float16" in dtypes.values())
    path = tmp_path / "model.safetensors"
    stream(path, keys, lambda key: drawn(key, keys[key]).astype(dtypes.get(key, "float32")), dtypes)
    measured = convert(kind, [path], tmp_path / "out")
    report(capsys, f"{case}, .safetensors", tmp_path / "out", measured)
    assert_clip_kept(tmp_path / "out", keys, dtypes)
    assert measured["peak"] - measured["idle"] < COPIES * largest_tensor(keys) + TRACING


@pytest.mark.parametrize("case", ["CAT-Seg B", "CAT-Seg L"])
def test_catseg_wrapped_in_pth(tmp_path, capsys, case):
    torch = pytest.importorskip("torch")
    kind, layout = CLIP_CASES[case]
    keys = LAYOUTS[layout]
    path = tmp_path / "model.pth"
    weights = {key: torch.from_numpy(drawn(key, shape)) for key, shape in keys.items()}
    torch.save({"model": weights, "optimizer": {"param_groups": [{"lr": 0.0002}]}, "iteration": 79999}, path)
    del weights
    measured = convert(kind, [path], tmp_path / "out", script=WITH_TORCH)
    report(capsys, f"{case}, .pth", tmp_path / "out", measured)
    assert_clip_kept(tmp_path / "out", keys, {})
    assert measured["peak"] - measured["idle"] < path.stat().st_size + COPIES * largest_tensor(keys) + TRACING


def test_clip_as_openai_archives_it(tmp_path, capsys):
    """A TorchScript archive, converted by a program that has no torch."""
    torch = pytest.importorskip("torch")
    kind, layout = CLIP_CASES["CLIP B/16"]
    keys = LAYOUTS[layout]
    dtypes = dtypes_of_clip(kind, keys)

    class Whole(torch.nn.Module):
        def forward(self, x):
            return x

    whole = Whole()
    for key, shape in keys.items():
        *places, name = key.split(".")
        module = whole
        for place in places:
            if place not in module._modules:
                module.add_module(place, Whole())
            module = module._modules[place]
        module.register_buffer(name, torch.from_numpy(drawn(key, shape).astype(dtypes.get(key, "float32"))))
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.trace(whole, torch.ones(1)).save(path)
    del whole, module
    measured = convert(kind, [path], tmp_path / "out", script=WITHOUT_TORCH)
    report(capsys, "CLIP B/16, TorchScript", tmp_path / "out", measured)
    assert_clip_kept(tmp_path / "out", keys, dtypes)
    assert measured["peak"] - measured["idle"] < COPIES * largest_tensor(keys) + TRACING
