"""CAT-Seg's whole files and OpenAI's CLIP, told by their keys and converted."""

import numpy as np
import pytest

from dinov3seg_jax.convert.run import convert, prepare
from dinov3seg_jax.models.presets import CLIP_TEXT, CLIP_VISION
from dinov3seg_jax.store.converted import ConvertedFolder
from tests.convert.files import LAYOUTS, official, save
from tests.convert.test_recognise import described, prefixed, sentence


@pytest.mark.parametrize(
    ("layout", "name", "clip", "view"),
    [
        ("catseg_model_vitb", "catseg_vitb", "clip_vitb16", 0),
        ("catseg_model_vitl", "catseg_vitl", "clip_vitl14_336", 336),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_whole_files(layout, name, clip, view, prefix):
    recognised, plan = prepare(described(prefixed(prefix, LAYOUTS[layout])), "catseg")
    assert recognised.name == name
    assert recognised.config["inference"]["view_size"] == view
    model = recognised.model
    assert (model["towers"], model["spe"], model["spe_dims"]) == ("clip", "vision", (256, 128))
    assert (model["late"]["window"], model["late"]["pad_classes"], model["late"]["max_classes"]) == (12, 256, 256)
    assert model["vision"]["outputs"] == CLIP_VISION[clip].outputs
    assert {"vision/projection/kernel", "guidance/lift_fine/kernel", "decoder/head/kernel"} <= plan.shapes.keys()


@pytest.mark.parametrize("layout", CLIP_VISION)
def test_clip(layout):
    recognised, plan = prepare(described(LAYOUTS[layout]), "clip")
    assert recognised.name == layout
    assert recognised.model["text"]["heads"] == CLIP_TEXT[layout].heads
    assert {name.split("/")[0] for name in plan.shapes} == {"vision", "text"}


def test_other_models():
    old = LAYOUTS["catseg_model_vitb"] | {"backbone.res2.0.conv1.weight": [64, 3, 3, 3]}
    assert "2023" in sentence(old, "catseg")
    assert "ResNet" in sentence({"visual.layer1.0.conv1.weight": [64, 64, 1, 1]}, "clip")
    assert "run dinov3seg convert catseg" in sentence(LAYOUTS["catseg_model_vitb"], "clip")
    assert "run dinov3seg convert clip" in sentence(LAYOUTS["clip_vitb16"], "catseg")


def test_a_whole_file_is_a_model_with_its_recipe(tmp_path):
    folder = tmp_path / "catseg"
    convert("catseg", [save(tmp_path / "model_base.safetensors", official("catseg_model"))], folder, ["late.heads=4"])
    opened = ConvertedFolder(folder)
    assert opened.config.inference.resize == "catseg"
    assert opened.config.model.towers == "clip"
    value = official("catseg_model")["sem_seg_head.predictor.clip_model.visual.proj"]
    np.testing.assert_array_equal(opened.arrays()["vision/projection/kernel"], value)
