"""Resizing bytes against its definition in float64."""

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.data.resize import resize
from tests.grey_levels import differ, hardly_differ

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 71, 3), np.uint8)
SIZES = [(80, 80), (60, 95), (130, 40), (44, 44), (150, 150)]


def triangle(x):
    return np.maximum(0, 1 - np.abs(x))


def cubic(x):  # a = -0.5
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * (x - 1) * (x - 2) ** 2, 0))


KERNELS = {BILINEAR: triangle, BICUBIC: cubic}


def weights(length, scaled, kernel, *, antialias=True, offset=0.5):
    """[scaled, length]"""
    ratio = length / scaled
    places = (np.arange(scaled)[:, None] + 0.5) * ratio - offset - np.arange(length)
    found = KERNELS[kernel](places / (max(ratio, 1) if antialias else 1))
    return found / found.sum(axis=1, keepdims=True)


def to_bytes(x):
    return np.floor(np.clip(x, 0, 255) + 0.5)


def defined(size, kernel, *, order=(1, 0), between=to_bytes, last=to_bytes, **options):
    """Axis after axis, rounded to bytes after each."""
    x = PICTURE.astype(float)
    for axis, after in zip(order, (between, last), strict=True):
        matrix = weights(x.shape[axis], size[axis], kernel, **options)
        x = after(np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis))
    return x


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_width_comes_first_whatever_pillow_prefers(size, kernel):
    hardly_differ(resize(PICTURE, size, kernel), defined(size, kernel))


MUTATIONS = {
    "the height first": {"order": (0, 1)},
    "rounded once": {"between": np.asarray},
    "cut to bytes": {"last": lambda x: np.floor(np.clip(x, 0, 255))},
    "no antialiasing": {"antialias": False},
    "half a pixel off": {"offset": 0.0},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_allowance_is_narrow(kernel, mutation):
    differ(resize(PICTURE, (44, 60), kernel), defined((44, 60), kernel, **MUTATIONS[mutation]))


def test_a_part_is_cut_from_the_whole():
    whole = resize(PICTURE, (48, 142), BILINEAR)
    part = resize(PICTURE, (24, 71), BILINEAR, (0, 0, 35.5, 48))
    np.testing.assert_array_equal(part[:20, :68], whole[:20, :68])  # away from the border, beyond which nothing is seen
