"""What refinement is for: scores at boundaries, by the size of things, by how crowded a picture is.

Like the confusion matrix they are exact counts over all pictures, divided once at the end.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dinov3seg_jax.evaluation.calibration_counts import Counts as CalibrationCounts
from dinov3seg_jax.evaluation.confusion import IGNORED
from dinov3seg_jax.formats.regions import find_regions
from dinov3seg_jax.inference.calibration import Kind
from dinov3seg_jax.training.agreement import mean_iou

BOUNDARY_SHARE = 0.02  # width of a boundary, of the picture's diagonal (Cheng et al. 2021, section 4)
SIZES = {"small": 32**2, "medium": 96**2, "large": None}  # pixels of a region below which it is so: COCO's
CROWDS = {"1_to_3": 4, "4_to_7": 8, "8_and_more": None}  # classes in a picture's truth, likewise
OUTSIDE = -2  # a value that no pixel has


class Measures:
    """Counts of (correct, predicted, true) pixels by class, for each group of pixels or pictures.

    Attributes:
        counts: by the name of the group, int64 [3, C].
        calibration: of confidences.
    """

    def __init__(self, classes: int, kind: Kind):
        """Begin with none; `kind` says what a confidence is."""
        groups = ["boundary", *SIZES, *CROWDS]
        self.counts: dict[str, Int[np.ndarray, "3 c"]] = {name: np.zeros((3, classes), np.int64) for name in groups}
        self.calibration = CalibrationCounts(kind, classes)

    def add(
        self, labels: Int[np.ndarray, "h w"], confidence: Float[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"]
    ) -> None:
        """Count the pixels of one picture.

        Args:
            labels: 0 to C - 1.
            confidence: of the same pixels.
            truth: 0 to C - 1, or -1 where a pixel is ignored, whatever is predicted there.
        """
        self.calibration.add(labels, confidence, truth)
        known = truth != IGNORED
        self._add("boundary", labels, truth, known & boundary(labels), known & boundary(truth))
        true_areas = region_areas(truth)
        # What is wrongly predicted is as large as what was predicted there; all else as what is true there.
        predicted_areas = np.where(labels == truth, true_areas, region_areas(labels))
        least = 0
        for name, limit in SIZES.items():
            chosen = (
                known & (least <= areas) & (areas < (limit or math.inf)) for areas in (predicted_areas, true_areas)
            )
            self._add(name, labels, truth, *chosen)
            least = limit or 0
        classes = len(np.unique(truth[known]))
        name = next((name for name, limit in CROWDS.items() if limit is None or classes < limit))
        self._add(name, labels, truth, known, known)

    def _add(
        self,
        group: str,
        labels: Int[np.ndarray, "h w"],
        truth: Int[np.ndarray, "h w"],
        predicted: Bool[np.ndarray, "h w"],
        true: Bool[np.ndarray, "h w"],
    ) -> None:
        """Count predictions at some pixels and truth at others; what is in both and equal is correct."""
        classes = self.counts[group].shape[1]
        chosen = (truth[predicted & true & (labels == truth)], labels[predicted], truth[true])
        self.counts[group] += np.stack([np.bincount(values, minlength=classes) for values in chosen])

    def scores(self) -> dict[str, Any]:
        """In percent, NaN where a group is empty.

        `boundary_iou`: the mean over classes of the IoU of boundaries. `miou_small`, `miou_medium`, `miou_large`: mIoU
        of regions of so many pixels. `miou_1_to_3_classes` and so on: mIoU of the pictures that show so many classes.
        `calibration_error`: the expected calibration error of the confidence, in 15 bins.
        """
        named = {"boundary": "boundary_iou"} | {name: f"miou_{name}" for name in SIZES}
        named |= {name: f"miou_{name}_classes" for name in CROWDS}
        found = {title: mean_iou(self.counts[name]) for name, title in named.items()}
        pixels = self.calibration.wrong_right.sum()
        return found | {"calibration_error": 100 * self.calibration.error(1.0) if pixels else math.nan}

    def arrays(self) -> Int[np.ndarray, " n"]:
        """All counts as one array, of which sums over processes are those of all pictures."""
        return np.concatenate(
            [*(counts.ravel() for counts in self.counts.values()), self.calibration.wrong_right.ravel()]
        )

    def _all(self) -> list[Int[np.ndarray, "..."]]:
        return [*self.counts.values(), self.calibration.wrong_right]

    def restore(self, arrays: Int[np.ndarray, " n"]) -> None:
        """Take counts that `arrays` gave.

        Raises:
            ValueError: they are of another number.
        """
        own = self._all()
        ends = np.cumsum([counts.size for counts in own])
        if arrays.shape != (ends[-1],):
            raise ValueError(f"{arrays.shape} counts are not {ends[-1]}")
        for counts, part in zip(own, np.split(arrays, ends[:-1]), strict=True):
            counts[...] = part.reshape(counts.shape)


def boundary(labels: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of a class that are near its edge: what 3 x 3 erosion takes of each class's mask, d times.

    d is 2 % of the diagonal, in whole pixels and at least 1; beyond the picture there is no class, so that its own
    edges count (Cheng et al., Boundary IoU, 2021). All classes at once: a pixel stays if no other value is within d.
    """
    from scipy import ndimage

    width = max(1, round(BOUNDARY_SHARE * math.hypot(*labels.shape)))
    near = {"size": 2 * width + 1, "mode": "constant", "cval": OUTSIDE}
    return ndimage.minimum_filter(labels, **near) != ndimage.maximum_filter(labels, **near)


def region_areas(labels: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """For each pixel the pixels of its region: those of one class that touch each other along their sides."""
    regions = find_regions(labels, np.zeros(labels.shape))
    return regions.areas[regions.ids]
