"""Normalisation and bilinear resizing against torch, from the pixels given on."""

import functools

import pytest

from dinov3seg_jax.models.layers import resize_linear
from dinov3seg_jax.models.segmenter import normalize_pixels
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_first, channels_last, described, section

TOLERANCE = 1e-5
NORM_TOLERANCE = 1e-6
BILINEAR = "out/interp_bilinear_"


@functools.cache
def load(path):
    return arrays(path)


FILES = pytest.mark.parametrize("path", fixtures("preprocess"), ids=lambda path: path.stem)


@FILES
def test_bilinear(path, compare):
    values = load(path)
    features = channels_last(values["in/feat"])
    for name, official in section(values, BILINEAR).items():
        compare(name, channels_first(resize_linear(features, *official.shape[2:])), official, TOLERANCE)


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
