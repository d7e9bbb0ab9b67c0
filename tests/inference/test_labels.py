"""Labels at a picture's own size are the arg-max of plainly interpolated scores."""

import numpy as np
import pytest

from dinov3seg_jax.inference.views import labels
from dinov3seg_jax.inference.views.labels import BestClass, label_pixels
from dinov3seg_jax.models.functions import half_pixel_weights


def interpolate(grid, height, width):
    """Half-pixel centres, edges held."""

    def along(values, outputs):
        places = (np.arange(outputs) + 0.5) * len(values) / outputs - 0.5
        return np.stack([np.interp(places, np.arange(len(values)), line) for line in values.T], axis=1)

    return along(along(grid, height).T, width).T


@pytest.mark.parametrize("size", [(7, 9), (20, 31), (3, 2), (1, 200), (130, 1), (150, 70)])
def test_against_plain_interpolation(monkeypatch, size):
    monkeypatch.setattr(labels, "PIECE", 64)
    scores = np.random.default_rng(0).random((5, 7, 9), np.float32)
    allowed = np.array([True, True, False, True, True])
    resized = np.stack([interpolate(grid, *size) for grid in scores])
    chosen, confidence = label_pixels(scores, allowed, *size)
    assert chosen.dtype == np.int32
    np.testing.assert_allclose(confidence, resized[allowed].max(axis=0), atol=1e-6)
    picked = np.take_along_axis(resized, chosen[None], axis=0)[0]
    np.testing.assert_allclose(picked, resized[allowed].max(axis=0), atol=1e-6)
    assert not (chosen == 2).any()


def test_the_first_of_equal_classes_wins():
    chosen, confidence = label_pixels(np.zeros((3, 2, 2), np.float32), np.array([False, True, True]), 4, 4)
    assert (chosen == 1).all()
    assert (confidence == 0).all()


def test_weights_of_an_equal_size_are_the_identity():
    np.testing.assert_array_equal(half_pixel_weights(5, 5), np.eye(5))


def test_classes_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(labels, "PIECE", 64)
    scores = np.random.default_rng(0).random((7, 5, 6), np.float32)
    scores[5] = scores[1]  # of equal ones the first counts
    allowed = np.array([True, True, False, True, True, True, True])
    best = BestClass([(100, 70)])
    for first in range(0, 7, 3):
        part = slice(first, first + 3)
        filled = np.pad(scores[part], ((0, 3 - len(scores[part])), (0, 0), (0, 0)), constant_values=9)
        best.update(filled[None], np.pad(allowed[part], (0, 3 - len(scores[part]))), first)
    (found,) = best.results()
    for ours, expected in zip(found, label_pixels(scores, allowed, 100, 70), strict=True):
        np.testing.assert_array_equal(ours, expected)
