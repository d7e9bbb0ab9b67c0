"""Which classes the picture of confusions shows, and what its cells say."""

import numpy as np
import pytest

from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix
from dinov3seg_jax.evaluation.confusion_picture import confusion_picture, most_confused, shares


def some_counts():
    matrix = ConfusionMatrix(5)
    truth = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3, IGNORED])
    prediction = np.array([0, 0, 1, 3, 1, 1, 2, 3, 0, 4])
    matrix.add(prediction[None], truth[None])
    return matrix.counts


@pytest.mark.parametrize(("shown", "chosen"), [(9, [0, 1, 2, 3]), (2, [0, 3]), (1, [0])])
def test_the_classes_that_are_confused_most_are_shown(shown, chosen):
    assert most_confused(some_counts(), shown).tolist() == chosen


def test_rows_are_shares_of_the_truth_and_sum_to_one():
    table = shares(some_counts(), np.array([0, 3]))
    np.testing.assert_array_equal(table, [[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])


def test_a_cell_has_the_colour_of_its_share():
    picture = confusion_picture(some_counts(), ["sky", "tree", "sea", "boat", "x" * 60], shown=2)
    assert picture.dtype == np.uint8
    cells = {}
    for share in (0.25, 0.5):  # two cells and three; a cell has 34 pixels a side, less its frame and its number
        color = np.rint(255 + share * (np.array([26, 95, 180]) - 255))
        cells[share] = (picture == color).all(axis=-1).sum() / 34**2
    assert 1.5 < cells[0.25] < 2 < 2.3 < cells[0.5] < 3


@pytest.mark.parametrize("counts", [np.zeros((3, 4), int), np.eye(3, 4, dtype=int)])
def test_nothing_and_nothing_wrong_can_be_drawn(counts):
    assert confusion_picture(counts, ["a", "b", "c"]).ndim == 3


def test_847_classes_fit_on_a_screen():
    counts = np.random.default_rng(0).integers(0, 1000, (847, 848))
    picture = confusion_picture(counts, [f"class number {index} with a very long name" for index in range(847)])
    assert max(picture.shape) < 1400
