"""Confusion matrix and the scores read off it: exact integers on the host, nothing rounded before the last division."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.training.agreement import mean_iou

IGNORED = -1  # truth value of pixels that count for nothing


class ConfusionMatrix:
    """Counts of (predicted class, true class) over any number of pictures, in any order.

    Attributes:
        classes: number C of classes.
        counts: int64 [C, C + 1]; rows are predictions and columns the truth, the last column being ignored pixels.
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"a confusion matrix needs at least one class, not {classes}")
        self.classes = classes
        self.counts: Int[np.ndarray, "c c+1"] = np.zeros((classes, classes + 1), np.int64)

    def add(self, prediction: Int[np.ndarray, "*batch h w"], truth: Int[np.ndarray, "*batch h w"]) -> None:
        """Count the pixels of one picture, or of a batch of equal size.

        Args:
            prediction: integers in 0 to C - 1.
            truth: integers of the same shape, in 0 to C - 1 or -1 for pixels to ignore.

        Raises:
            ValueError: shapes differ, an array is not of integers, or a value is out of range.
        """
        prediction, truth = np.asarray(prediction), np.asarray(truth)
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
        _check_values("prediction", prediction, lowest=0, highest=self.classes - 1)
        _check_values("truth", truth, lowest=IGNORED, highest=self.classes - 1)
        columns = self.classes + 1
        truth = np.where(truth == IGNORED, self.classes, truth).astype(np.int64)
        pairs = prediction.astype(np.int64) * columns + truth
        self.counts += np.bincount(pairs.ravel(), minlength=self.counts.size).reshape(self.counts.shape)


def image_miou(prediction: Int[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"], classes: int) -> float:
    """Mean IoU in percent over the classes that the truth of one picture shows; NaN where it shows none.

    For ranking pictures: the score of a data set is not the mean of these.
    """
    labelled = truth != IGNORED
    prediction, truth = prediction[labelled], truth[labelled]
    true_pixels, predicted_pixels, correct = (
        np.bincount(values, minlength=classes) for values in (truth, prediction, truth[truth == prediction])
    )
    return mean_iou(np.stack([correct, predicted_pixels, true_pixels]))


def scores(counts: Int[np.ndarray, "c c+1"], seen: Sequence[bool] | None = None) -> dict[str, Any]:
    """Scores of the field, in percent, as detectron2's `SemSegEvaluator` defines them.

    With tp the diagonal, gt the column sums and pr the row sums over pixels that are not ignored, a class has
    IoU = tp / (gt + pr - tp) and accuracy tp / gt. A class that never occurs in the truth has neither (NaN) and is
    left out of the means; one that occurs and is never predicted counts 0.

    Args:
        counts: `ConfusionMatrix.counts`, int64 [C, C + 1].
        seen: for each class whether it was trained on; asks for the two partial means.

    Returns:
        `miou`, `pixel_accuracy`, `mean_accuracy` and `fwiou`, floats from 0 to 100 (NaN if no pixel counts);
        `seen_miou` and `unseen_miou` likewise, only if `seen` is given; `iou` and `accuracy`, float64 [C]; `pixels`,
        int64 [C], how many of the truth each class has.

    Raises:
        ValueError: `counts` has another shape, or `seen` another length.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] != counts.shape[0] + 1:
        raise ValueError(f"counts of C classes have the shape [C, C + 1], not {list(counts.shape)}")
    if seen is not None and len(seen) != len(counts):
        raise ValueError(f"{len(seen)} values of seen for {len(counts)} classes")
    labelled = counts[:, :-1]
    correct = np.diag(labelled)
    true_pixels, predicted_pixels = labelled.sum(axis=0), labelled.sum(axis=1)
    iou = _percent(correct, true_pixels + predicted_pixels - correct, where=true_pixels > 0)
    accuracy = _percent(correct, true_pixels, where=true_pixels > 0)
    total = true_pixels.sum()
    present = true_pixels > 0
    weighted_iou = (iou[present] * true_pixels[present]).sum() / total if total else np.nan
    result: dict[str, Any] = {"miou": _mean(iou)}
    if seen is not None:
        trained_on = np.asarray(seen, bool)
        result |= {"seen_miou": _mean(iou[trained_on]), "unseen_miou": _mean(iou[~trained_on])}
    return result | {
        "pixel_accuracy": float(100 * correct.sum() / total) if total else float("nan"),
        "mean_accuracy": _mean(accuracy),
        "fwiou": float(weighted_iou),
        "iou": iou,
        "accuracy": accuracy,
        "pixels": true_pixels,
    }


def _check_values(name: str, values: np.ndarray, lowest: int, highest: int) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} holds {values.dtype}, not integers")
    if values.size and not (lowest <= values.min() and values.max() <= highest):
        raise ValueError(f"{name} holds values from {values.min()} to {values.max()}, not within {lowest} to {highest}")


def _percent(part: Int[np.ndarray, "c"], whole: Int[np.ndarray, "c"], where: np.ndarray) -> Float[np.ndarray, "c"]:
    result = np.full(part.shape, np.nan)
    np.divide(100 * part, whole, out=result, where=where)
    return result


def _mean(values: Float[np.ndarray, "n"]) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else float("nan")
