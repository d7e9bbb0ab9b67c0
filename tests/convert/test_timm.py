"""DINOv3 in timm's layout: the same arrays as from the official file, and every size known."""

import dataclasses
import json
import re

import ml_dtypes
import numpy as np
import pytest

from convert.__main__ import main
from dinov3seg_jax.config import VisionConfig
from dinov3seg_jax.convert.run import prepare
from dinov3seg_jax.models.presets import VISION
from dinov3seg_jax.models.rope import rope_periods
from dinov3seg_jax.store.converted import read_arrays, read_manifest
from tests.convert.files import LAYOUTS, official, save
from tests.convert.test_recognise import described

NAMES = {
    r"storage_tokens": "reg_token",
    r"ls([12])\.gamma": r"gamma_\1",
    r"mlp\.w1\.": "mlp.fc1_g.",
    r"mlp\.w2\.": "mlp.fc1_x.",
    r"mlp\.w3\.": "mlp.fc2.",
}
NOT_STORED = re.compile(r"mask_token|rope_embed\.periods|local_cls_norm\..*|.*\.qkv\.bias|.*\.bias_mask")


def timm_key(key):
    for ours, theirs in NAMES.items():
        key = re.sub(ours, theirs, key)
    return key


def to_timm(source, *, biased):
    """timm's state dict of the same model; key biases are always zero there."""
    found = {timm_key(key): value for key, value in source.items() if not NOT_STORED.fullmatch(key)}
    for key, bias in source.items() if biased else ():
        if key.endswith(".qkv.bias"):
            start = key.removesuffix("qkv.bias")
            found[f"{start}q_bias"], _, found[f"{start}v_bias"] = np.split(bias, 3)
    return found


def as_released(name):
    """A fixture's weights, with what timm does not store as it computes it; and the number of heads."""
    source = official(name)
    count = len(source["rope_embed.periods"])
    source |= {
        "rope_embed.periods": rope_periods(4 * count, 100.0),
        "mask_token": np.zeros_like(source["mask_token"]),
    }
    for key in [key for key in source if key.endswith(".qkv.bias")]:
        dim = len(source[key]) // 3
        source[key][dim : 2 * dim] = 0
        source[f"{key}_mask"] = np.ones(3 * dim, np.float32)
    return source, source["cls_token"].shape[-1] // (4 * count)


def convert(source, out, *more):
    assert main(["dinov3", "--source", str(source), "--out", str(out), *more]) == 0
    return read_manifest(out)


@pytest.mark.parametrize(
    ("fixture", "biased"), [("vit_tiny_mlp", True), ("vit_tiny_swiglu", True), ("vit_tiny_7bstyle", False)]
)
def test_the_same_arrays_as_from_the_official_file(tmp_path, fixture, biased):
    source, heads = as_released(fixture)
    one = convert(save(tmp_path / "official.safetensors", source), tmp_path / "one")
    two = convert(
        save(tmp_path / "timm.safetensors", to_timm(source, biased=biased)),
        tmp_path / "two",
        f"--config.vision.heads={heads}",
    )
    assert one.arrays == two.arrays
    assert one.model["vision"] == two.model["vision"]
    assert two.notes == []


def test_periods_are_rounded_on_request(tmp_path):
    source, _ = as_released("vit_tiny_mlp")
    convert(
        save(tmp_path / "a.safetensors", to_timm(source, biased=True)),
        tmp_path / "out",
        "--rounded_periods",
        "--config.vision.heads=4",
    )
    periods = np.asarray(read_arrays(tmp_path / "out")["vision/backbone/periods"])
    np.testing.assert_array_equal(periods, rope_periods(16, 100.0).astype(ml_dtypes.bfloat16).astype(np.float32))


def shapes_of(layout, *, biased):
    shapes = LAYOUTS[layout]
    found = {timm_key(key): shape for key, shape in shapes.items() if not NOT_STORED.fullmatch(key)}
    for key, (width,) in ((key, shape) for key, shape in shapes.items() if biased and key.endswith(".qkv.bias")):
        start = key.removesuffix("qkv.bias")
        found[f"{start}q_bias"] = found[f"{start}v_bias"] = [width // 3]
    return found


@pytest.mark.parametrize("biased", [False, True], ids=["", "qkvb"])
@pytest.mark.parametrize("layout", VISION)
def test_every_size_is_known_with_the_options_of_the_release(layout, biased):
    recognised, plan = prepare(described(shapes_of(layout, biased=biased), f"{layout}.lvd1689m.safetensors"), "dinov3")
    assert (recognised.name, recognised.notes) == (layout, ())
    assert VisionConfig(**recognised.model["vision"]) == dataclasses.replace(VISION[layout], head_blocks=0)
    places = {name for reading in plan.readings for name, _ in reading.places}
    assert places | plan.fills.keys() == plan.shapes.keys()


def test_pictures_are_told_by_the_config_beside_it_or_asked_for(tmp_path):
    shapes = shapes_of("vitl16", biased=False)
    config = json.loads('{"architecture": "vit_large_patch16_dinov3", "pretrained_cfg": {"tag": "sat493m"}}')
    recognised, _ = prepare(described(shapes, config=config), "dinov3")
    assert recognised.name == "vitl16_sat493m"
    assert recognised.notes[0].startswith("these are SAT-493M weights")
    assert prepare(described(shapes), "dinov3")[0].notes[0].startswith("the files do not say that they are not SAT")


def test_heads_that_no_file_says_are_said_to_be_assumed():
    source, _ = as_released("vit_tiny_mlp")
    shapes = {key: value.shape for key, value in to_timm(source, biased=True).items()}
    assert prepare(described(shapes), "dinov3")[0].notes == (
        "no file says vision.heads; 1 is assumed, set --config.vision.heads if it is another",
    )
    assert prepare(described(shapes), "dinov3", ["vision.heads=4"])[0].notes == ()
