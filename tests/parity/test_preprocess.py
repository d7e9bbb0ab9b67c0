"""Resizing and normalisation against torch, torchvision and Pillow."""

import functools

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.data.resize import resize
from dinov3seg_jax.inference.views.local_global import resize_image
from dinov3seg_jax.inference.zero_shot import resize_as_torchvision
from dinov3seg_jax.models.functions import resize_cubic, resize_linear
from dinov3seg_jax.models.linear_head import PIXELS
from dinov3seg_jax.models.pixels import normalize_pixels
from tests.grey_levels import differ, hardly_differ
from tests.parity.fixtures import SHIPPED, fixtures
from tests.parity.official import arrays, channels_first, channels_last, described, section

TOLERANCE = 2e-5  # of values up to 4; the places between them, up to 16, are float32 as well
NORM_TOLERANCE = 3e-6  # a dozen last places of 2.6, the largest value; half a grey level is 9e-3
RESIZES = {"out/interp_bilinear_": resize_linear, "out/interp_bicubic_": resize_cubic}


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
            ours = resize_as_torchvision(values["in/image_u8_hwc"], options["size"], np.inf)
            np.testing.assert_array_equal(ours, values[f"out/{name}_u8_hwc"], err_msg=name)


@FILES
def test_the_short_side_for_classification(path):
    """torchvision's resize, not Pillow's, which of a portrait may start with the height."""
    values = load(path)
    image, official = values["in/image_u8_hwc"], values["out/cls_eval_resized_u8"].transpose(1, 2, 0)
    side = described(values, "meta/config_json")["cls_eval"]["resize"]
    assert resize_as_torchvision(image, side, np.inf).shape == official.shape
    hardly_differ(resize(image, official.shape[:2], Image.Resampling.BICUBIC), official)


@FILES
@pytest.mark.parametrize(("name", "pixels"), [("readme_eval", "lvd1689m"), ("readme_eval_sat", "sat493m")])
def test_squares(path, name, pixels):
    values = load(path)
    side = values[f"out/{name}"].shape[1]
    ours = resize_image(values["in/image_u8_hwc"], InferenceConfig(image_size=side), 1)
    mean, deviation = PIXELS[pixels]
    official = (channels_last(values[f"out/{name}"][None])[0] * deviation + mean) * 255
    np.testing.assert_allclose(official, np.rint(official), atol=5e-4)  # bytes once more: the statistics are right
    hardly_differ(ours, np.rint(official))


def test_another_resize_would_be_noticed():
    values = load(SHIPPED / "preprocess.npz")
    image, official = values["in/image_u8_hwc"], values["out/cls_eval_resized_u8"].transpose(1, 2, 0)
    (height, width), size = image.shape[:2], official.shape[:2]
    cubic = Image.Resampling.BICUBIC
    others = {
        "the right one": resize(image, size, cubic),
        "kernel": resize(image, size, Image.Resampling.BILINEAR),
        "no antialiasing": np.clip(np.rint(resize_cubic(image[None].astype(np.float32), *size)[0]), 0, 255),
        "half a pixel off": resize(image, size, cubic, (0.5, 0, width, height)),
    }
    hardly_differ(others.pop("the right one"), official)
    for other in others.values():
        differ(other, official)


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
