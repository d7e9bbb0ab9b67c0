"""Two results of one picture side by side, and where they differ."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.visualize.drawing import NO_DATA, Drawing, percent
from dinov3seg_jax.visualize.legends import side_by_side, with_legend
from dinov3seg_jax.visualize.names_in_regions import write_names
from dinov3seg_jax.visualize.palettes import class_colors
from dinov3seg_jax.visualize.shrinking import shrunk, shrunk_picture
from dinov3seg_jax.visualize.tint import UNLABELLED, overlay

_DIFFERENT = np.array([[230, 0, 126]], np.uint8)
_PANEL = 2048  # pixels of the longer side, at most: three panels stand beside each other
_FADED = 0.35  # of the picture's own contrast, under the map of differences


class Labelled(Protocol):
    """A result; `inference.result.Segmentation` is one."""

    @property
    def image(self) -> np.ndarray:
        """The picture: uint8 [H, W, 3], RGB."""

    @property
    def labels(self) -> np.ndarray:
        """Of each pixel: integer [H, W], -1 where there are no data."""

    @property
    def names(self) -> Sequence[str]:
        """Of the labels."""

    @property
    def colors(self) -> np.ndarray:
        """Of the labels: uint8 [T, 3]."""

    @property
    def drawing(self) -> Drawing:
        """How it is drawn."""


def compare(first: Labelled, second: Labelled, titles: Sequence[str] = ("first", "second")) -> np.ndarray:
    """Both results, and a map of the pixels whose classes have other names, under titles and above one legend.

    Shares are of all pixels; a large picture is drawn smaller.

    A class has one colour on both sides: that of the first result, or of the second where only that has it. A class of
    the second that would have the colour of another gets a new one. The legend has the share of each class in the
    first and in the second result.

    Args:
        first: with the picture that is shown, and drawn as it says, but for the legend.
        second: of the same picture; its classes may be others.
        titles: of the two.

    Returns:
        uint8 [H', W', 3].

    Raises:
        UserError: the results are of pictures of two sizes.
    """
    if first.labels.shape != second.labels.shape:
        sizes = " and ".join(f"{width} x {height}" for height, width in (first.labels.shape, second.labels.shape))
        raise UserError(f"the results are of pictures of {sizes} pixels; compare two of the same picture")
    names = list(dict.fromkeys([*first.names, *second.names]))
    colors = _joint_colors(first, second, names)
    joint = [_renumbered(result, names) for result in (first, second)]
    known = (joint[0] != UNLABELLED) | (joint[1] != UNLABELLED)
    differs = (joint[0] != joint[1]) & known
    share = percent(int(differs.sum()), max(int(known.sum()), 1))

    drawing, image = first.drawing, shrunk_picture(first.image, _PANEL)
    panels = []
    for labels in (shrunk(labels, _PANEL) for labels in joint):
        panel = overlay(image, labels, colors, drawing.opacity, drawing.contours)
        panels.append(write_names(panel, labels, names) if drawing.labels else panel)
    panels.append(_difference(image, shrunk(differs, _PANEL)))
    row = side_by_side(panels, [*titles, f"they differ in {share}"])
    return with_legend(row, *_rows(joint, names, colors)) if drawing.legend else row


def _joint_colors(first: Labelled, second: Labelled, names: Sequence[str]) -> np.ndarray:
    given = dict(zip(first.names, map(tuple, first.colors.tolist()), strict=True))
    for name, color in zip(second.names, map(tuple, second.colors.tolist()), strict=True):
        if name not in given and color not in given.values():
            given[name] = color
    return class_colors(names, given=given)


def _renumbered(result: Labelled, names: Sequence[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(names)}
    table = np.array([*(places[name] for name in result.names), UNLABELLED], np.int32)
    return table[result.labels]  # -1 takes the last row


def _difference(image: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """The picture in pale grey, and in a strong colour where the results differ."""
    grey = image @ np.array([0.299, 0.587, 0.114]) * _FADED + 255 * (1 - _FADED)
    pale = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return overlay(pale, np.where(differs, 0, UNLABELLED), _DIFFERENT, alpha=0.75, contours="off")


def _rows(
    joint: Sequence[np.ndarray], names: Sequence[str], colors: np.ndarray
) -> tuple[list[str], np.ndarray, list[str]]:
    """Names, colours and shares in the legend; the class that is largest in both together is the first."""
    counts = [np.bincount(labels[labels != UNLABELLED], minlength=len(names)) for labels in joint]
    shown = [index for index in np.argsort(-sum(counts), kind="stable").tolist() if any(own[index] for own in counts)]
    parts = [[percent(int(own[index]), max(int(own.sum()), 1)) for own in counts] for index in shown]
    shares = [" / ".join(both) for both in parts]
    without = [int((labels == UNLABELLED).sum()) for labels in joint]
    known = [names[index] for index in shown]
    if any(without):
        known.append(NO_DATA)
        shares.append(" / ".join(percent(own, joint[0].size) for own in without))
    return known, colors[shown], shares
