"""From what a model scores to what was asked: names of one class, the background, and what is unknown."""

import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.inference.calibration import Calibration
from dinov3seg_jax.text.class_lists import ClassList

Labels = tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "h w"]]


def settle(
    asked: ClassList,
    labels: Int[np.ndarray, "h w"],
    confidence: Float[np.ndarray, "h w"],
    calibration: Calibration | None,
) -> Labels:
    """The answer in each pixel of a picture, or of a piece of one.

    Args:
        asked: what was asked.
        labels: indices into `asked.rows`, of the best one.
        confidence: its score, in [0, 1].
        calibration: of the model, if it has one.

    Returns:
        Indices into `asked.names`, and the confidence, calibrated: of an unknown pixel that of the best class, below
        `asked.min_confidence`.
    """
    if calibration is not None:
        confidence = calibration(confidence, len(asked.rows))
    if asked.is_plain:
        return labels, confidence
    labels = asked.answers[labels]
    if asked.has_unknown:
        labels = np.where(confidence >= asked.min_confidence, labels, np.int32(len(asked.names) - 1))
    return labels, confidence


def settle_scores(
    asked: ClassList, scores: Float[np.ndarray, "rows h w"], calibration: Calibration | None
) -> Float[np.ndarray, "t h w"]:
    """The score of each class, and of the background: the best one of its rows. What is unknown has none.

    Args:
        asked: what was asked.
        scores: of `asked.rows`, and perhaps of what fills them up.
        calibration: as for `settle`.
    """
    scores = scores[: len(asked.answers)]
    first = np.flatnonzero(np.diff(asked.answers, prepend=-1))  # rows of one class follow each other
    if len(first) < len(scores):
        scores = np.maximum.reduceat(scores, first, axis=0)
    return scores if calibration is None else calibration(scores, len(asked.rows))
