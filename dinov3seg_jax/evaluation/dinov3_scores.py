"""Scores as the DINOv3 repository computes them (its specification, section 12.3), read off a confusion matrix."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int


def areas(counts: Int[np.ndarray, "c c+1"]) -> dict[str, Int[np.ndarray, " c"]]:
    """Pixels of each class, without those that the truth ignores.

    Args:
        counts: `ConfusionMatrix.counts`, int64 [C, C + 1].

    Returns:
        `intersect`, `union`, `pred` and `label`, int64 [C].
    """
    labelled = counts[:, :-1]
    intersect, pred, label = np.diag(labelled), labelled.sum(axis=1), labelled.sum(axis=0)
    return {"intersect": intersect, "union": pred + label - intersect, "pred": pred, "label": label}


def area_scores(counts: Int[np.ndarray, "c c+1"]) -> dict[str, Any]:
    """Scores in percent.

    Unlike with `confusion.scores`, a class that is predicted but absent from the truth counts 0 in the mean IoU; one
    that is absent from both is left out. torchmetrics' macro Jaccard index with ignored pixels is the same.

    Args:
        counts: `ConfusionMatrix.counts`, int64 [C, C + 1].

    Returns:
        `miou`, `pixel_accuracy`, `mean_accuracy`, `dice`, `fscore`, `precision` and `recall`, floats from 0 to 100,
        means over the classes that have them (NaN if none has); `fwiou`; `iou` and `accuracy`, float64 [C]; `pixels`,
        int64 [C], how many of the truth each class has.
    """
    of = areas(counts)
    intersect, union, pred, label = (of[name].astype(np.float64) for name in ("intersect", "union", "pred", "label"))
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN, and left out
        iou, accuracy, precision = intersect / union, intersect / label, intersect / pred
        dice = 2 * intersect / (pred + label)
        fscore = 2 * precision * accuracy / (precision + accuracy)
        pixel_accuracy = intersect.sum() / label.sum()
        fwiou = np.nansum(iou * label) / label.sum()
    return {
        "miou": _mean(iou),
        "pixel_accuracy": 100 * float(pixel_accuracy),
        "mean_accuracy": _mean(accuracy),
        "fwiou": 100 * float(fwiou),
        "dice": _mean(dice),
        "fscore": _mean(fscore),
        "precision": _mean(precision),
        "recall": _mean(accuracy),
        "iou": 100 * iou,
        "accuracy": 100 * accuracy,
        "pixels": of["label"],
    }


def _mean(values: Float[np.ndarray, " c"]) -> float:
    counted = values[~np.isnan(values)]
    return 100 * float(counted.mean()) if counted.size else float("nan")
