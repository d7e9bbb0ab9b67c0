"""The confusion matrix against loops over pixels, and the definitions of the scores on hand-made cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix, scores


def count_one_by_one(classes, predictions, truths):
    counts = np.zeros((classes, classes + 1), np.int64)
    for prediction, truth in zip(np.ravel(predictions), np.ravel(truths), strict=True):
        counts[prediction, classes if truth == IGNORED else truth] += 1
    return counts


def scores_one_by_one(counts):
    classes = len(counts)
    iou, accuracy, pixels, weighted, correct, total = [], [], [], 0.0, 0, 0
    for label in range(classes):
        hit = int(counts[label, label])
        true = sum(int(counts[row, label]) for row in range(classes))
        predicted = sum(int(counts[label, column]) for column in range(classes))
        iou.append(100 * hit / (true + predicted - hit) if true else math.nan)
        accuracy.append(100 * hit / true if true else math.nan)
        pixels.append(true)
        weighted += iou[-1] * true if true else 0
        correct, total = correct + hit, total + true
    kept = [value for value in iou if not math.isnan(value)]
    kept_accuracy = [value for value in accuracy if not math.isnan(value)]
    return {
        "miou": sum(kept) / len(kept) if kept else math.nan,
        "mean_accuracy": sum(kept_accuracy) / len(kept_accuracy) if kept else math.nan,
        "pixel_accuracy": 100 * correct / total if total else math.nan,
        "fwiou": weighted / total if total else math.nan,
        "iou": iou,
        "accuracy": accuracy,
        "pixels": pixels,
    }


@st.composite
def pictures(draw):
    """A number of classes, and predictions and truths [N, H, W]."""
    classes = draw(st.integers(1, 6))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
    dtype = draw(st.sampled_from([np.int16, np.int32, np.int64]))
    prediction = draw(arrays.arrays(dtype, shape, elements=st.integers(0, classes - 1)))
    truth = draw(arrays.arrays(dtype, shape, elements=st.integers(IGNORED, classes - 1)))
    return classes, prediction, truth


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_counts_and_scores_equal_loops_over_pixels(drawn):
    classes, prediction, truth = drawn
    matrix = ConfusionMatrix(classes)
    matrix.add(prediction, truth)
    expected = count_one_by_one(classes, prediction, truth)
    np.testing.assert_array_equal(matrix.counts, expected)
    ours, plain = scores(matrix.counts), scores_one_by_one(expected)
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(pictures(), st.randoms(use_true_random=False))
def test_batches_add_up_in_any_order(drawn, random):
    classes, prediction, truth = drawn
    at_once, one_by_one = ConfusionMatrix(classes), ConfusionMatrix(classes)
    at_once.add(prediction, truth)
    order = list(range(len(prediction)))
    random.shuffle(order)
    for index in order:
        one_by_one.add(prediction[index], truth[index])
    np.testing.assert_array_equal(at_once.counts, one_by_one.counts)


def test_prediction_in_rows_truth_in_columns_ignored_last():
    matrix = ConfusionMatrix(2)
    matrix.add(np.array([[0, 0, 1]]), np.array([[1, IGNORED, IGNORED]]))
    np.testing.assert_array_equal(matrix.counts, [[0, 1, 1], [0, 0, 1]])
    assert matrix.counts.dtype == np.int64


def test_small_unsigned_predictions_do_not_overflow():
    matrix = ConfusionMatrix(200)
    matrix.add(np.full((3, 3), 199, np.uint8), np.full((3, 3), 198, np.uint8))
    assert matrix.counts[199, 198] == 9


def test_absent_class_is_left_out_and_missed_class_counts_zero():
    matrix = ConfusionMatrix(3)
    matrix.add(np.array([[0, 0, 2, 0]]), np.array([[0, 0, 0, 1]]))  # 1 is never predicted, 2 is not in the truth
    result = scores(matrix.counts)
    np.testing.assert_allclose(result["iou"], [50.0, 0.0, np.nan])
    np.testing.assert_allclose(result["accuracy"], [200 / 3, 0.0, np.nan])
    assert result["miou"] == 25.0
    assert result["pixel_accuracy"] == 50.0
    assert result["fwiou"] == 37.5


def test_predictions_on_ignored_pixels_cost_nothing():
    matrix = ConfusionMatrix(2)
    matrix.add(np.array([[0, 1, 1, 1]]), np.array([[0, 1, IGNORED, IGNORED]]))
    assert scores(matrix.counts)["miou"] == 100.0


def test_seen_and_unseen_means():
    matrix = ConfusionMatrix(4)
    matrix.add(np.array([[0, 0, 2, 3]]), np.array([[0, 1, 2, 2]]))
    result = scores(matrix.counts, seen=[True, False, True, False])
    assert result["seen_miou"] == 50.0  # 0: one of two; 2: one of two
    assert result["unseen_miou"] == 0.0  # 1 is missed, 3 is not in the truth
    assert result["miou"] == pytest.approx(100 / 3)
    assert "seen_miou" not in scores(matrix.counts)


def test_nothing_labelled_gives_nan_without_warnings(recwarn):
    matrix = ConfusionMatrix(2)
    matrix.add(np.zeros((2, 2), int), np.full((2, 2), IGNORED))
    result = scores(matrix.counts, seen=[True, True])
    assert not result.pop("pixels").any()
    assert all(np.isnan(value).all() for value in result.values())
    assert not recwarn.list


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        ([[2]], [[0]]),
        ([[-1]], [[0]]),
        ([[0]], [[2]]),
        ([[0]], [[-2]]),
        ([[0, 0]], [[0]]),
        ([[0.0]], [[0]]),
        ([[0]], [[0.0]]),
    ],
)
def test_wrong_values_are_refused_and_leave_the_counts_alone(prediction, truth):
    matrix = ConfusionMatrix(2)
    with pytest.raises(ValueError, match=r"prediction|truth"):
        matrix.add(np.array(prediction), np.array(truth))
    assert not matrix.counts.any()


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="at least one class"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="shape"):
        scores(np.zeros((3, 3), np.int64))
    with pytest.raises(ValueError, match="seen"):
        scores(np.zeros((3, 4), np.int64), seen=[True])
