"""How sure a model was, and whether it was right: counts of pixels, in memory for two pictures."""

import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.calibration import Kind, margins, tempered

BINS, REACH = 2**16, 32.0  # of margins, from -REACH to REACH
TEMPERATURES = (1e-3, 1e3)
BINS_OF_ERROR = 15  # as in the paper


class Counts:
    """How many pixels had which margin, and whether their label was right: memory knows nothing of the pictures."""

    def __init__(self, kind: Kind, classes: int):
        """Begin with none; arguments as for `calibration.margins`."""
        self.kind, self.classes = kind, classes
        self.wrong_right: Int[np.ndarray, "2 bins"] = np.zeros((2, BINS), np.int64)

    def add(
        self, labels: Int[np.ndarray, "h w"], confidence: Float[np.ndarray, "h w"], truth: Int[np.ndarray, "h w"]
    ) -> None:
        """Count the pixels of a picture; a truth below 0 does not count."""
        known = truth >= 0
        found = margins(confidence[known].astype(np.float64), self.kind, self.classes)
        bins = np.clip((found + REACH) / (2 * REACH) * BINS, 0, BINS - 1).astype(np.int64)
        right = labels[known] == truth[known]
        for place, chosen in enumerate((~right, right)):
            self.wrong_right[place] += np.bincount(bins[chosen], minlength=BINS)

    def confidences(self, temperature: float) -> Float[np.ndarray, " bins"]:
        """Of each bin, at a temperature."""
        middles = ((np.arange(BINS) + 0.5) / BINS * 2 - 1) * REACH
        return tempered(middles, temperature, self.kind, self.classes)

    def log_loss(self, temperature: float) -> float:
        """Of the confidence as the probability of being right, in nats a pixel."""
        probability = np.clip(self.confidences(temperature), 1e-12, 1 - 1e-12)
        wrong, right = self.wrong_right
        return float(-(right @ np.log(probability) + wrong @ np.log1p(-probability)) / self.wrong_right.sum())

    def error(self, temperature: float) -> float:
        """The expected calibration error: how far confidence is from the share of right pixels, in bins of it."""
        confidences, counts = self.confidences(temperature), self.wrong_right.sum(axis=0)
        bins = np.minimum((confidences * BINS_OF_ERROR).astype(int), BINS_OF_ERROR - 1)
        right, sure = (np.bincount(bins, weights=values) for values in (self.wrong_right[1], confidences * counts))
        return float(np.abs(right - sure).sum() / counts.sum())

    def temperature(self) -> float:
        """That of the least log loss.

        Raises:
            UserError: all labels are right, or none is, so that there is nothing to fit.
        """
        from scipy.optimize import minimize_scalar

        wrong, right = self.wrong_right.sum(axis=1).tolist()
        if not wrong or not right:
            what = "right" if right else "wrong" if wrong else "without a label"
            raise UserError(f"all {wrong + right:,} labelled pixels are {what}; calibrate on more pictures, or others")
        bounds = tuple(np.log(TEMPERATURES))
        return float(np.exp(minimize_scalar(lambda x: self.log_loss(np.exp(x)), bounds=bounds, method="bounded").x))
