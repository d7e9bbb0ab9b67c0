"""TIPSv2's files are recognised and converted, with their tokenizer."""

import base64
import json

import numpy as np
import pytest

from dinov3seg_jax.config import ZeroShotConfig
from dinov3seg_jax.convert.recognise import recognise
from dinov3seg_jax.convert.run import convert
from dinov3seg_jax.convert.sources import Source, Tensor, open_source
from dinov3seg_jax.convert.verify import check_manifest
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.load import load
from dinov3seg_jax.store.converted import ConvertedFolder
from tests.convert.files import LAYOUTS, save
from tests.convert.scenic import scenic_text, scenic_vision
from tests.parity.fixtures import SHIPPED
from tests.parity.official import arrays, described, section

VALUES = arrays(SHIPPED / "tips_zeroshot.npz")
STATE = section(VALUES, "w/")
HEADS = ["vision.heads=4", "text.heads=4"]


@pytest.mark.parametrize("name", ["tipsv2_b14", "tipsv2_l14", "tipsv2_so400m14", "tipsv2_g14"])
def test_released_sizes(name, tmp_path):
    layout = {key: entry["shape"] if isinstance(entry, dict) else entry for key, entry in LAYOUTS[name].items()}
    tensors = {key: Tensor(tuple(shape), lambda: np.zeros(0)) for key, shape in layout.items()}
    found = recognise(Source((tmp_path / "model.safetensors",), tensors, {}, ()), "tips")
    assert (found.kind, found.name, found.notes) == ("tips", name, ())


@pytest.fixture
def tokenizer(tmp_path):
    pytest.importorskip("sentencepiece")
    path = tmp_path / "given.model"
    path.write_bytes(base64.b64decode(json.loads((SHIPPED / "tips_tokenizer.json").read_text())["model_base64"]))
    return path


def test_hub_file_and_tokenizer_become_one_folder(tmp_path, tokenizer, capsys):
    source, out = save(tmp_path / "model.safetensors", STATE), tmp_path / "out"
    convert("tips", [source, tokenizer], out, HEADS)
    folder = ConvertedFolder(out)
    assert folder.config.model.towers == "tips"
    assert folder.config.model.tokenizer == str(out / "tokenizer.model")
    assert (out / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    expected = ZeroShotConfig("head", "slide", 448, 448, 336, "tcl_9")
    assert folder.config.zero_shot == expected
    assert check_manifest(out)
    options = described(VALUES, "config")["cases"]["slide_uint8"]
    small = [
        f"zero_shot.{name}={options[theirs]}"
        for name, theirs in (("short_side", "short_side"), ("window", "side"), ("stride", "stride"))
    ]
    names = json.loads((SHIPPED / "tips_tokenizer.json").read_text())["zeroshot"]["names"]
    result = load(out, small).segment(VALUES["in/slide_uint8/image"], names)
    decided = VALUES["out/slide_uint8/top2_margin"] > 1e-5
    np.testing.assert_array_equal(result.labels[decided], VALUES["out/slide_uint8/argmax"][decided])
    convert("tips", [source, tokenizer], out, HEADS)  # replaces it
    (out / "tokenizer.model").write_bytes(b"other")
    assert not check_manifest(out)
    assert "changed since the conversion: tokenizer.model" in capsys.readouterr().out


def test_npz_of_each_tower_without_a_tokenizer(tmp_path):
    parts = {}
    for tower in ("vision", "text"):
        values = section(STATE, f"{tower}_encoder.")
        np.savez(tmp_path / f"{tower}.npz", **values, **({"temperature": np.float32(0.01)} if tower == "text" else {}))
        parts[tower] = tmp_path / f"{tower}.npz"
    manifest = convert("tips", list(parts.values()), tmp_path / "both", HEADS)
    assert any("no tokenizer came with the weights" in note for note in manifest.notes)
    whole = convert("tips", [save(tmp_path / "model.safetensors", STATE)], tmp_path / "hub", HEADS)
    assert manifest.arrays == whole.arrays
    alone = convert("tips", [parts["vision"]], tmp_path / "vision", HEADS[:1])
    assert alone.arrays == {name: array for name, array in whole.arrays.items() if name.startswith("vision/")}
    with pytest.raises(UserError, match="without text/; zero-shot segmentation needs what `dinov3seg convert tips`"):
        load(tmp_path / "vision")


def test_scenic_files_answer_as_the_hub_s_do(tmp_path, tokenizer):
    vision, text = section(STATE, "vision_encoder."), section(STATE, "text_encoder.")
    grid, depths = round((vision["pos_embed"].shape[1] - 1) ** 0.5), []
    for state, start in ((vision, "blocks."), (text, "transformer.resblocks.")):
        depths.append(1 + max(int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start)))
    np.savez(tmp_path / "vision.npz", **scenic_vision(vision, grid, depths[0]))
    np.savez(tmp_path / "text.npz", **scenic_text(text, depths[1]))
    manifest = convert("tips", [tmp_path / "vision.npz", tmp_path / "text.npz", tokenizer], tmp_path / "scenic", HEADS)
    whole = convert("tips", [save(tmp_path / "model.safetensors", STATE), tokenizer], tmp_path / "hub", HEADS)
    assert (manifest.name, manifest.model | {"tokenizer": ""}) == (whole.name, whole.model | {"tokenizer": ""})
    case = described(VALUES, "config")["cases"]["slide_uint8"]
    small = [f"zero_shot.short_side={case['short_side']}", f"zero_shot.window={case['side']}"]
    small.append(f"zero_shot.stride={case['stride']}")
    names = json.loads((SHIPPED / "tips_tokenizer.json").read_text())["zeroshot"]["names"]
    ours, theirs = (
        load(tmp_path / folder, small).segment(VALUES["in/slide_uint8/image"], names) for folder in ("scenic", "hub")
    )
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=2e-6)
    decided = VALUES["out/slide_uint8/top2_margin"] > 1e-5
    np.testing.assert_array_equal(ours.labels[decided], theirs.labels[decided])


def test_pickled_and_damaged_npz(tmp_path):
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="which is pickled, and nothing in it was run"):
        open_source([tmp_path / "pickled.npz"])
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="is damaged, or no archive of NumPy"):
        open_source([tmp_path / "damaged.npz"])


def test_towers_of_two_sizes(tmp_path):
    tensors = {}
    for name, tower in (("tipsv2_b14", "vision"), ("tipsv2_l14", "text")):
        for key, entry in LAYOUTS[name].items():
            if key.startswith(tower):
                shape = entry["shape"] if isinstance(entry, dict) else entry
                tensors[key] = Tensor(tuple(shape), lambda: np.zeros(0))
    with pytest.raises(UserError, match="the vision tower is 768 wide and the text tower 1024"):
        recognise(Source((tmp_path / "model.safetensors",), tensors, {}, ()), "tips")


def test_a_tokenizer_where_none_belongs(tmp_path, tokenizer):
    vision = save(tmp_path / "model.safetensors", {key: STATE[key] for key in STATE if key.startswith("vision_")})
    with pytest.raises(UserError, match="these weights read no text with it"):
        convert("tips", [vision, tokenizer], tmp_path / "out", HEADS[:1])
    with pytest.raises(UserError, match="comes with no weights"):
        open_source([tokenizer])
