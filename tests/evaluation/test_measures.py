"""Boundary IoU, mIoU by size and by crowd, against their definitions class by class."""

import math

import numpy as np
import pytest
from scipy import ndimage

from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores
from dinov3seg_jax.evaluation.measures import Measures, boundary, region_areas

RNG = np.random.default_rng(0)
CLASSES = 4
SHAPE = (60, 80)  # diagonal 100: boundaries are 2 pixels wide


def blobs(seed, ignored=0.0):
    """Smooth regions of CLASSES classes, and some ignored pixels."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(SHAPE), 5) for _ in range(CLASSES)]
    labels = np.argmax(fields, axis=0)
    labels[: round(ignored * SHAPE[0])] = -1
    return labels


def measured(*pairs, confidence=0.5):
    measures = Measures(CLASSES, "softmax")
    for labels, truth in pairs:
        measures.add(labels, np.full(SHAPE, confidence), truth)
    return measures.scores()


@pytest.mark.parametrize("labels", [blobs(1), blobs(2, 0.2), np.zeros(SHAPE, int)], ids=["all", "some", "one"])
def test_a_boundary_is_what_erosion_takes_of_each_class(labels):
    expected = np.zeros(SHAPE, bool)
    for index in np.unique(labels):
        mask = labels == index
        expected |= mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=2)
    np.testing.assert_array_equal(boundary(labels), expected)


def test_boundary_iou_is_the_mean_of_the_classes_own():
    pairs = [(blobs(1), blobs(2, 0.2)), (blobs(3), blobs(4))]
    both = np.zeros((2, CLASSES))
    for labels, truth in pairs:
        for index in range(CLASSES):
            edges = [(values == index) & boundary(values) & (truth >= 0) for values in (labels, truth)]
            both += np.array([[(edges[0] & edges[1]).sum()], [(edges[0] | edges[1]).sum()]]) * (
                np.arange(CLASSES) == index
            )
    assert measured(*pairs)["boundary_iou"] == pytest.approx(100 * np.mean(both[0] / both[1]))


def test_what_is_right_everywhere_is_right_in_every_group():
    truth = blobs(5)
    truth[:, 40:] = 2  # medium: half of the picture
    truth[3:6, 3:6] = (truth[3, 3] + 1) % CLASSES
    found = measured((truth, truth), confidence=1.0)
    assert {name: score for name, score in found.items() if not math.isnan(score)} == {
        "boundary_iou": 100,
        "miou_small": 100,
        "miou_medium": 100,
        "miou_4_to_7_classes": 100,
        "calibration_error": pytest.approx(0, abs=1e-3),
    }


def test_a_wrong_boundary_costs_more_there_than_elsewhere():
    truth = np.zeros(SHAPE, int)
    truth[10:50, 20:60] = 1
    shifted = np.roll(truth, 2, axis=1)
    found = measured((shifted, truth))
    assert found["boundary_iou"] < found["miou_medium"] == pytest.approx(found["miou_1_to_3_classes"])


def test_misses_have_the_size_of_the_truth_and_inventions_that_of_the_prediction():
    truth = np.zeros(SHAPE, int)
    truth[30:32, 30:35] = 1  # small, missed
    truth[:, 40:] = 2  # large
    labels = np.where(truth == 1, 0, truth)
    labels[10:14, 50:55] = 1  # small, invented
    counts = Measures(CLASSES, "softmax")
    counts.add(labels, np.ones(SHAPE), truth)
    #                                                         correct, predicted, true
    np.testing.assert_array_equal(counts.counts["small"][:, 1], [0, 20, 10])
    size = 60 * 40
    np.testing.assert_array_equal(counts.counts["medium"][:, 0], [size - 10, size, size - 10])
    np.testing.assert_array_equal(counts.counts["medium"][:, 2], [size - 20, size - 20, size])
    assert not counts.counts["large"].any()


def test_groups_of_pictures_are_scored_as_data_sets_are():
    pairs = [(blobs(seed), np.minimum(blobs(seed + 1), 2)) for seed in (1, 3)]
    confusion = ConfusionMatrix(CLASSES)
    for pair in pairs:
        confusion.add(*pair)
    four = (blobs(6), blobs(7))
    found = measured(*pairs, four)
    assert found["miou_1_to_3_classes"] == pytest.approx(scores(confusion.counts)["miou"])
    assert found["miou_4_to_7_classes"] == pytest.approx(measured(four)["miou_4_to_7_classes"])
    assert math.isnan(found["miou_8_and_more_classes"])


def test_the_calibration_error_is_how_far_confidence_is_from_the_truth():
    truth = np.zeros(SHAPE, int)
    labels = truth.copy()
    labels[: SHAPE[0] // 4] = 1  # three quarters are right
    assert measured((labels, truth), confidence=0.9)["calibration_error"] == pytest.approx(15, abs=0.1)


def test_ignored_pixels_count_in_nothing():
    truth, labels = blobs(1, 0.2), blobs(2)
    other = np.where(truth < 0, (labels + 1) % CLASSES, labels)
    first, second = measured((labels, truth)), measured((other, truth))
    assert first["miou_4_to_7_classes"] == second["miou_4_to_7_classes"]
    assert first["calibration_error"] == second["calibration_error"]


def test_regions_touch_along_their_sides():
    np.testing.assert_array_equal(region_areas(np.array([[0, 1, 1], [1, 0, 1]])), [[1, 3, 3], [1, 1, 3]])


def test_counts_add_up_and_go_on():
    whole, parts = Measures(CLASSES, "softmax"), [Measures(CLASSES, "softmax") for _ in range(2)]
    for seed, part in enumerate(parts):
        for one in (whole, part):
            one.add(blobs(seed), np.full(SHAPE, 0.7), blobs(seed + 5, 0.1))
    again = Measures(CLASSES, "softmax")
    again.restore(parts[0].arrays() + parts[1].arrays())
    assert again.scores() == pytest.approx(whole.scores(), nan_ok=True)
    with pytest.raises(ValueError, match="counts are not"):
        again.restore(np.zeros(3, np.int64))
