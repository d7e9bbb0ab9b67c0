"""The mIoU of training steps against counting by hand."""

import numpy as np
import pytest

from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores
from dinov3seg_jax.training.agreement import count_agreement, mean_iou

RNG = np.random.default_rng(0)
NAMES = 6
CLASS_IDS = np.array([[5, 3, 0], [2, 3, 4]])


def test_it_counts_what_the_scores_of_an_evaluation_count():
    logits = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    label = RNG.integers(-1, 3, (2, 4, 4))
    counts = count_agreement(logits, label, CLASS_IDS, NAMES)
    confusion = ConfusionMatrix(NAMES)
    for ids, best, true in zip(CLASS_IDS, logits.argmax(axis=1), label, strict=True):
        confusion.add(ids[best], np.where(true >= 0, ids[true], -1))
    assert mean_iou(counts) == pytest.approx(scores(confusion.counts)["miou"], rel=1e-6)


def test_a_cells_label_is_that_of_its_middle_pixel():
    label = np.zeros((1, 8, 8), np.int64)
    label[0, 2::4, 2::4] = 1  # the middles of four cells of 4 x 4 pixels
    logits = np.zeros((1, 3, 2, 2), np.float32)
    logits[:, 1] = 1
    np.testing.assert_array_equal(count_agreement(logits, label, CLASS_IDS[:1], NAMES), [[0, 0, 0, 4, 0, 0]] * 3)


def test_ignored_pixels_count_for_nothing():
    counts = count_agreement(np.ones((2, 3, 4, 4), np.float32), np.full((2, 4, 4), -1), CLASS_IDS, NAMES)
    assert not np.any(counts)
    assert np.isnan(mean_iou(counts))
