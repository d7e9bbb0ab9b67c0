"""How a result is drawn: what a user can choose, and the picture that comes of it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from dinov3seg_jax.errors import UserError, did_you_mean, one_line
from dinov3seg_jax.visualize.legends import with_legend
from dinov3seg_jax.visualize.names_in_regions import write_names
from dinov3seg_jax.visualize.tint import CONTOURS, Contours, overlay

NO_DATA = "no data"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What an overlay looks like.

    Attributes:
        opacity: of the tint: 0 shows the picture alone, 1 the colours alone.
        contours: "thin", "off", or "only", which draws no tint (see `tint.overlay`).
        labels: whether the names are written into the large regions.
        legend: whether the classes that occur are listed beside or below the picture, with their shares.
    """

    opacity: float = 0.55
    contours: Contours = "thin"
    labels: bool = False
    legend: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: one cannot be used.
        """
        opacity = self.opacity
        number = isinstance(opacity, int | float | np.number) and math.isfinite(opacity)
        if not number or not 0 <= opacity <= 1:
            raise UserError(f"opacity is {one_line(opacity, 40)}; give a number from 0 (no tint) to 1 (no picture)")
        if self.contours not in CONTOURS:
            word = one_line(self.contours, 40)
            raise UserError(f"contours are '{word}'{did_you_mean(word, CONTOURS)}; choose one of {', '.join(CONTOURS)}")


def draw(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    colors: np.ndarray,
    drawing: Drawing,
    counts: np.ndarray | None = None,
    nodata: int | None = None,
) -> np.ndarray:
    """The picture tinted by class, with what else was asked for; in the legend, the largest class is the first.

    Args:
        image: uint8 [H, W, 3].
        labels: integer [H, W]; -1 is no data.
        names: T names.
        colors: uint8 [T, 3].
        drawing: how.
        counts: int [T], pixels of each class, where those of `labels` are not the whole picture's.
        nodata: pixels without data, likewise.

    Returns:
        uint8 [H', W', 3]: the picture is in the top left corner.

    Raises:
        ValueError: see `tint.overlay`.
    """
    picture = overlay(image, labels, colors, drawing.opacity, drawing.contours)
    if drawing.labels:
        picture = write_names(picture, labels, names)
    if not drawing.legend:
        return picture
    if counts is None or nodata is None:
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        nodata = int((labels < 0).sum())
    shown = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]]
    total = int(counts.sum())
    rows = [(names[index], percent(int(counts[index]), total)) for index in shown]
    if nodata:
        rows.append((NO_DATA, f"({percent(nodata, total + nodata)} of all)"))
    return with_legend(picture, [name for name, _ in rows], colors[shown], [share for _, share in rows])


def percent(part: int, whole: int) -> str:
    """A share, never rounded to nothing or to all when it is not."""
    if 0 < part < 0.0005 * whole:
        return "<0.1%"
    return ">99.9%" if 0.9995 * whole <= part < whole else f"{part / whole:.1%}"
