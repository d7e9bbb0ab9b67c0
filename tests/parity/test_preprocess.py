"""Resizing and normalisation against torch, torchvision and Pillow."""

import functools

import numpy as np
import pytest

from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.inference.views.local_global import resize_image
from dinov3seg_jax.inference.zero_shot import resize_short_side
from dinov3seg_jax.models.functions import resize_cubic, resize_linear
from dinov3seg_jax.models.linear_head import PIXELS
from dinov3seg_jax.models.pixels import normalize_pixels
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_first, channels_last, described, section

TOLERANCE = 1e-5
NORM_TOLERANCE = 1e-6
RESIZES = {"out/interp_bilinear_": resize_linear, "out/interp_bicubic_": resize_cubic}
GREY_LEVEL = 1  # by which torchvision's antialiased resize of bytes differs from Pillow's, at very few pixels
FEW = 0.01


@functools.cache
def load(path):
    return arrays(path)


FILES = pytest.mark.parametrize("path", fixtures("preprocess"), ids=lambda path: path.stem)


@FILES
@pytest.mark.parametrize("prefix", RESIZES, ids=["bilinear", "bicubic"])
def test_plain_resizes(path, prefix, compare):
    values = load(path)
    features = channels_last(values["in/feat"])
    for name, official in section(values, prefix).items():
        compare(name, channels_first(RESIZES[prefix](features, *official.shape[2:])), official, TOLERANCE)


@FILES
def test_short_sides_of_pictures(path):
    values = load(path)
    config = described(values, "meta/config_json")
    for name, options in config.items():
        if f"out/{name}_u8_hwc" in values:
            ours = resize_short_side(values["in/image_u8_hwc"], options["size"], np.inf)
            np.testing.assert_array_equal(ours, values[f"out/{name}_u8_hwc"], err_msg=name)
    ours = resize_short_side(values["in/image_u8_hwc"], config["cls_eval"]["resize"], np.inf)
    assert_within_a_grey_level(ours, values["out/cls_eval_resized_u8"].transpose(1, 2, 0))


@FILES
@pytest.mark.parametrize(("name", "pixels"), [("readme_eval", "lvd1689m"), ("readme_eval_sat", "sat493m")])
def test_squares(path, name, pixels):
    values = load(path)
    side = values[f"out/{name}"].shape[1]
    ours = resize_image(values["in/image_u8_hwc"], InferenceConfig(image_size=side), 1)
    mean, deviation = PIXELS[pixels]
    official = (channels_last(values[f"out/{name}"][None])[0] * deviation + mean) * 255
    np.testing.assert_allclose(official, np.rint(official), atol=1e-4)  # bytes once more: the statistics are right
    assert_within_a_grey_level(ours, np.rint(official))


def assert_within_a_grey_level(ours, official):
    differences = np.abs(ours.astype(int) - official.astype(int))
    assert differences.max() <= GREY_LEVEL
    assert (differences > 0).mean() <= FEW


@FILES
def test_normalisation(path, compare):
    values = load(path)
    crop = described(values, "meta/config_json")["cls_eval"]["crop"]
    resized = values["out/cls_eval_resized_u8"].transpose(1, 2, 0)
    top, left = (round((n - crop) / 2) for n in resized.shape[:2])
    pixels = {
        "cls_eval": resized[top : top + crop, left : left + crop],
        "seg_shortside_norm": values["out/seg_shortside_u8_hwc"],
    }
    for name, image in pixels.items():
        ours = normalize_pixels(image / 255).transpose(2, 0, 1)
        compare(name, ours, values[f"out/{name}"], NORM_TOLERANCE)
