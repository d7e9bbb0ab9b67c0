"""The command, on small models: what comes out is what the tables say, bit for bit, or nothing comes out at all."""

import hashlib
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from convert.__main__ import main
from dinov3seg_jax.convert.sources import hash_note
from dinov3seg_jax.convert.tables import dinov3, huggingface
from dinov3seg_jax.convert.tables.rules import apply_rules
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.converted import is_converted, read_arrays, read_manifest
from tests.convert.files import FIXTURES, LAYOUTS, drawn, official, save

HEADS = {"dinotxt_tiny": ["--config.text.heads=4"]}


@pytest.fixture
def tiny():
    return official("vit_tiny_mlp")


def convert(kind, source, out, *more):
    sources = source if isinstance(source, list) else [source]
    return main([kind, "--source", *map(str, sources), "--out", str(out), *more])


def refused(folder, *arguments):
    """The sentence, after a look that nothing was left behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(*arguments)
    assert sorted(folder.rglob("*")) == before
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("fixture", "kind"),
    [
        ("vit_tiny_mlp", "dinov3"),
        ("vit_tiny_swiglu", "dinov3"),
        ("vit_tiny_7bstyle", "dinov3"),
        ("vit_tiny_untied_zeromask", "dinov3"),
        ("dinotxt_tiny", "dinotxt"),
        ("sam_image_encoder", "sam"),
        pytest.param("catseg_aggregator_vitb", "catseg", marks=pytest.mark.slow),
    ],
)
def test_every_value_arrives_once(tmp_path, fixture, kind):
    """Each place of ours holds a value of the source; all of them, but for masked biases and dropped tensors."""
    source = (
        {key: drawn(key, shape) for key, shape in LAYOUTS[fixture].items()} if kind == "catseg" else official(fixture)
    )
    assert convert(kind, save(tmp_path / "a.safetensors", source), tmp_path / "out", *HEADS.get(fixture, ())) == 0
    arrays = read_arrays(tmp_path / "out")
    ours = np.sort(np.concatenate([np.ravel(value) for value in arrays.values()]))
    theirs = np.sort(np.concatenate([np.ravel(_masked(source, key)) for key in source if not _unused(key)]))
    np.testing.assert_array_equal(ours, theirs)


def _unused(key):
    return key.endswith((".bias_mask", "attn_mask")) or key.startswith("local_cls_norm")


def _masked(source, key):
    return source[key] * source.get(f"{key}_mask", np.float32(1))


def test_arrays_are_where_the_tables_put_them(tmp_path, tiny):
    convert("dinov3", save(tmp_path / "a.safetensors", tiny), tmp_path / "out")
    arrays = read_arrays(tmp_path / "out")
    expected = apply_rules(
        tiny, dinov3.RULES, {name.removeprefix("vision/backbone/"): value.shape for name, value in arrays.items()}
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[f"vision/backbone/{name}"], value, err_msg=name)
    kernel = tiny["blocks.2.attn.qkv.weight"][64:128].T
    np.testing.assert_array_equal(arrays["vision/backbone/blocks/attention/key/kernel"][2], kernel)


def test_the_manifest_says_where_everything_comes_from(tmp_path, tiny):
    source = save(tmp_path / "a.safetensors", tiny)
    convert("dinov3", source, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.kind, manifest.name, manifest.rules_version) == ("dinov3", "custom", 1)
    assert manifest.sources == [{"name": "a.safetensors", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}]
    assert manifest.model["vision"]["heads"] == 4
    for name, value in read_arrays(tmp_path / "out").items():
        digest = hashlib.sha256(np.asarray(value).tobytes()).hexdigest()
        assert manifest.arrays[name] == {"shape": list(value.shape), "sha256": digest}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(tmp_path, tiny, dtype):
    narrow = {key: value.astype(getattr(ml_dtypes, dtype, dtype)) for key, value in tiny.items()}
    convert("dinov3", save(tmp_path / "a.safetensors", narrow), tmp_path / "out")
    scale = read_arrays(tmp_path / "out")["vision/backbone/norm/scale"]
    np.testing.assert_array_equal(scale, narrow["norm.weight"].astype(np.float32))
    assert scale.dtype == np.float32


def test_shards_with_an_index(tmp_path):
    source = official("hf_vit_tiny_mlp")
    keys = sorted(source)
    names = {key: f"model-0000{1 + (number > 9)}-of-00002.safetensors" for number, key in enumerate(keys)}
    for name in set(names.values()):
        save(tmp_path / name, {key: source[key] for key in keys if names[key] == name})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    (tmp_path / "config.json").write_text(json.dumps({"rope_theta": 50.0, "num_attention_heads": 2}))
    for given in (index, tmp_path):
        out = tmp_path / "out"
        convert("dinov3", given, out)
        assert len(read_manifest(out).sources) == 3
    arrays = read_arrays(out)
    exact = {name.removeprefix("vision/backbone/"): value.shape for name, value in arrays.items()}
    for name, value in apply_rules(source, huggingface.rules(50.0), exact).items():
        np.testing.assert_array_equal(arrays[f"vision/backbone/{name}"], value, err_msg=name)

    (tmp_path / "config.json").unlink()
    convert("dinov3", index, out, "--rounded_periods", "--config.vision.heads=2")
    periods = np.asarray(read_arrays(out)["vision/backbone/periods"])
    np.testing.assert_array_equal(periods, periods.astype(ml_dtypes.bfloat16).astype(np.float32))

    index.write_text(json.dumps({"weight_map": names | {"more": names[keys[0]]}}))
    assert "disagree on 'more'" in refused(tmp_path, "dinov3", index, tmp_path / "other")
    index.write_text(json.dumps({"weight_map": names | {keys[0]: "gone.safetensors"}}))
    assert "names 'gone.safetensors', which is not beside it" in refused(tmp_path, "dinov3", index, tmp_path / "other")
    index.write_text(json.dumps({"weight_map": {key: f"../{name}" for key, name in names.items()}}))
    assert "is no index of .safetensors files beside it" in refused(tmp_path, "dinov3", index, tmp_path / "other")


def test_two_files_of_one_model(tmp_path):
    source = official("dinotxt_tiny")
    prefix = "visual_model.backbone."
    backbone = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
    rest = {key: value for key, value in source.items() if not key.startswith(prefix)}
    files = [save(tmp_path / "backbone.safetensors", backbone), save(tmp_path / "rest.safetensors", rest)]
    convert("dinotxt", files, tmp_path / "two", *HEADS["dinotxt_tiny"])
    convert("dinotxt", save(tmp_path / "whole.safetensors", source), tmp_path / "one", *HEADS["dinotxt_tiny"])
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert (one.arrays, one.model, one.name) == (two.arrays, two.model, two.name)
    assert "as another file does" in refused(tmp_path, "dinotxt", [*files, tmp_path / "whole.safetensors"], "other")


def test_a_file_given_twice(tmp_path, tiny):
    source = save(tmp_path / "a.safetensors", tiny)
    assert "is given twice; name each file once" in refused(tmp_path, "dinov3", [source, source], tmp_path / "out")


def test_a_damaged_config_beside_the_file(tmp_path, tiny):
    source = save(tmp_path / "a.safetensors", tiny)
    (tmp_path / "config.json").write_text("{")
    assert "config.json' is damaged (JSONDecodeError)" in refused(tmp_path, "dinov3", source, tmp_path / "out")


def test_a_folder_that_cannot_be_written(tmp_path, tiny):
    source = save(tmp_path / "a.safetensors", tiny)
    assert "cannot be written (Not a directory)" in refused(tmp_path, "dinov3", source, source / "a" / "out")


def test_a_name_that_promises_another_checksum(tmp_path):
    note = hash_note(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth", "ab" * 32)
    assert "begins with 08c60483, but it is abababab" in note
    assert hash_note(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth", "08c60483" + "0" * 56) is None
    assert hash_note(tmp_path / "mine-08c60483.pth", "ab" * 32) is None


def test_an_earlier_conversion_is_replaced_and_nothing_else(tmp_path, tiny):
    source, out = save(tmp_path / "a.safetensors", tiny), tmp_path / "out"
    convert("dinov3", source, out)
    tiny["norm.bias"] += 1
    convert("dinov3", save(source, tiny), out)
    np.testing.assert_array_equal(read_arrays(out)["vision/backbone/norm/bias"], tiny["norm.bias"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "out"]

    mine = tmp_path / "mine"
    mine.mkdir()
    convert("dinov3", source, mine)  # an empty folder is nothing
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert "is no earlier conversion" in refused(tmp_path, "dinov3", source, other)
    assert "is no earlier conversion" in refused(tmp_path, "dinov3", source, source)
    (out / "zero_shot").mkdir()
    assert "holds 'zero_shot' beside an earlier conversion" in refused(tmp_path, "dinov3", source, out)
    assert (out / "zero_shot").is_dir()


def test_a_failing_conversion_leaves_the_earlier_one(tmp_path, tiny):
    source, out = save(tmp_path / "a.safetensors", tiny), tmp_path / "out"
    convert("dinov3", source, out)
    earlier = read_manifest(out)
    tiny["norm.bias"][3] = np.nan
    assert "'norm.bias' of the source holds a NaN" in refused(tmp_path, "dinov3", save(source, tiny), out)
    assert read_manifest(out) == earlier


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.bias": None}, "parameters without a tensor: vision/backbone/norm/bias"),
        ({"blocks.1.ls1.gamma": None}, "parameters without a tensor: vision/backbone/blocks/ls1 of block 1"),
        ({"surprise": np.ones(3, np.float32)}, "tensors that nothing reads: surprise"),
        ({"norm.bias": np.ones(63, np.float32)}, r"wrong shapes: vision/backbone/norm/bias (63,) instead of (64,)"),
        ({"norm.bias": np.full(64, np.nan, np.float32)}, "'norm.bias' of the source holds a NaN"),
        ({"norm.bias": np.full(64, -np.inf, np.float32)}, "'norm.bias' of the source holds a NaN or an infinite"),
        ({"norm.bias": np.ones(64, np.int64)}, "tensor 'norm.bias' of"),
        ({"blocks.0.attn.qkv.weight": np.ones((191, 64), np.float32)}, "which no model of this kind has"),
        ({"blocks.0.attn.qkv.bias_mask": np.full(192, np.nan, np.float32)}, "holds a NaN"),
    ],
)
def test_a_model_that_is_not_whole(tmp_path, tiny, changes, message):
    changed = {key: value for key, value in (tiny | changes).items() if value is not None}
    source = save(tmp_path / "a.safetensors", changed)
    assert message in refused(tmp_path, "dinov3", source, tmp_path / "out")


def header(declared: int, text: bytes, data: bytes = b"") -> bytes:
    return declared.to_bytes(8, "little") + text + data


def one_tensor(shape: list, offsets: list, dtype: str = "F32") -> bytes:
    text = json.dumps({"cls_token": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return header(len(text), text, bytes(16))


EMPTY_TENSOR = b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
TWICE = b"{" + EMPTY_TENSOR + b"," + EMPTY_TENSOR + b"}"
DAMAGED = {
    "empty": b"",
    "a header of 10^15 bytes": header(10**15, b"{}"),
    "a shape of 10^15": one_tensor([10**15], [0, 16]),
    "a tensor beyond the end": one_tensor([10**15], [0, 4 * 10**15]),
    "a tensor before the start": one_tensor([4], [-16, 0]),
    "a negative size": one_tensor([-2, -2], [0, 16]),
    "a shape of words": one_tensor(["4"], [0, 16]),
    "an unknown type": one_tensor([4], [0, 16], "F4"),
    "bytes that belong to nothing": one_tensor([3], [0, 12]),
    "no JSON": header(2, b"{{"),
    "no dictionary": header(2, b"[]"),
    "very deep JSON": header(100_000, b"[" * 100_000),
    "the same key twice": header(len(TWICE), TWICE),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file(tmp_path, content):
    source = tmp_path / "a.safetensors"
    source.write_bytes(content)
    assert "is damaged or no .safetensors file" in refused(tmp_path, "dinov3", source, tmp_path / "out")


@pytest.mark.parametrize("bytes_left", [4, 2000, -1])
def test_a_truncated_file(tmp_path, tiny, bytes_left):
    source = save(tmp_path / "a.safetensors", tiny)
    source.write_bytes(source.read_bytes()[:bytes_left])
    assert "is damaged or no .safetensors file" in refused(tmp_path, "dinov3", source, tmp_path / "out")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02"])
def test_a_pth_under_another_name(tmp_path, start):
    source = tmp_path / "a.safetensors"
    source.write_bytes(start + bytes(100))
    assert "is a PyTorch file under another name" in refused(tmp_path, "dinov3", source, tmp_path / "out")


def test_a_safetensors_file_under_another_name(tmp_path, tiny):
    source = save(tmp_path / "a.pth", tiny)
    assert "is a .safetensors file under another name" in refused(tmp_path, "dinov3", source, tmp_path / "out")


def test_without_torch_a_pth_file_names_the_extra(tmp_path, monkeypatch):
    source = tmp_path / "a.pth"
    source.write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "install the extra 'convert'" in refused(tmp_path, "dinov3", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"),
    [(["gone.safetensors"], "does not exist"), (["notes.txt"], "is no .safetensors"), (["."], "holds 0 sets")],
)
def test_files_that_are_none(tmp_path, names, message):
    (tmp_path / "notes.txt").write_text("not weights")
    assert message in refused(tmp_path, "dinov3", [tmp_path / name for name in names], tmp_path / "out")


def test_the_command_exits_with_2_and_one_sentence(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(header(10**15, b"{}"))
    command = ["-m", "convert", "dinov3", "--source", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, *command], cwd=FIXTURES.parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "declares a header of 1000000000000000 bytes in a file of 10" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not is_converted(tmp_path / "out")
