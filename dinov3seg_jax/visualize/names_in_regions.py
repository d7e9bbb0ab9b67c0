"""Names written into the regions that have room for them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dinov3seg_jax.visualize.lines import RGB, Line

_INK: RGB = (255, 255, 255)
_HALO: RGB = (16, 16, 18)
_CELLS = 900  # along the longer side: places are looked for in steps of so many pixels
_SIZES = (36, 50)  # letters: so many of one size fit into the longer side; smaller ones where these find no room
_SMALLEST = 11  # pixels
_ROW = 1.5  # of the size of letters, which some scripts pile up
_LEAST_SHARE = 0.002  # of the picture; what is smaller needs no name
_NAMES_EACH = 4  # the largest regions of a class


class _Cells(NamedTuple):
    """The label map in squares of `step` pixels."""

    step: int
    regions: np.ndarray  # int [h, w]: the number of its region, from 1; 0 where labels meet
    boxes: list[tuple[slice, slice]]  # of the regions
    labels: np.ndarray  # int [h, w]
    depth: np.ndarray  # float [h, w]: how far labels or the picture's edge are
    blocked: np.ndarray  # int [h + 1, w + 1]: cells with 0 that are above and to the left


def write_names(picture: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Write each class's name into its largest regions, as far from their borders as it can stand.

    A name is written where its whole box lies in one region, and nowhere else.

    Args:
        picture: uint8 [H, W, 3].
        labels: Integer [H, W]; -1 gets no name.
        names: of the labels.

    Returns:
        uint8 [H, W, 3].
    """
    cells = _cells(labels)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    sizes = [max(_SMALLEST, round(max(labels.shape) / letters)) for letters in _SIZES]
    for region, label in _largest(cells):
        for line in (Line(names[label], size) for size in sizes):
            found = _place(cells, region, line)
            if found is not None:
                middle, center = found
                line.draw(draw, center - line.width // 2, middle, _INK, _HALO)
                break
    return np.array(canvas)


def _cells(labels: np.ndarray) -> _Cells:
    from scipy import ndimage  # here, as it takes a tenth of a second that most starts need not spend

    step = max(1, -(-max(labels.shape) // _CELLS))
    least, most = _blocks(labels, step, np.minimum), _blocks(labels, step, np.maximum)
    pure = (least == most) & (least >= 0)
    for axis in (0, 1):  # where two pure cells meet, one of them is the border
        values, marked = np.moveaxis(least, axis, 0), np.moveaxis(pure, axis, 0)
        marked[:-1] &= values[:-1] == values[1:]
    regions, _ = ndimage.label(pure)
    depth = ndimage.distance_transform_edt(np.pad(pure, 1))[1:-1, 1:-1]
    blocked = np.pad((~pure).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return _Cells(step, regions, ndimage.find_objects(regions), least, depth, blocked)


def _blocks(labels: np.ndarray, step: int, reduce: np.ufunc) -> np.ndarray:
    """The least or the largest label of each cell."""
    for axis in (0, 1):
        labels = reduce.reduceat(labels, range(0, labels.shape[axis], step), axis=axis)
    return labels


def _largest(cells: _Cells) -> list[tuple[int, int]]:
    """Regions that may get a name, with their labels."""
    areas = np.bincount(cells.regions.ravel())
    areas[0] = 0
    numbers, places = np.unique(cells.regions, return_index=True)
    labels = dict(zip(numbers.tolist(), cells.labels.ravel()[places].tolist(), strict=True))
    named: dict[int, int] = {}
    found = []
    for region in np.argsort(-areas, kind="stable").tolist():
        label = labels.get(region, 0)
        if areas[region] >= _LEAST_SHARE * cells.regions.size and named.get(label, 0) < _NAMES_EACH:
            named[label] = named.get(label, 0) + 1
            found.append((region, label))
    return found


def _place(cells: _Cells, region: int, line: Line) -> tuple[int, int] | None:
    """Row and column of the middle of a line within a region, in pixels; None where it does not fit."""
    height, width = (int(-(-length // cells.step)) + 1 for length in (_ROW * line.size, line.width + line.size))
    rows, columns = cells.boxes[region - 1]
    if not line.text or rows.stop - rows.start < height or columns.stop - columns.start < width:
        return None
    blocked = cells.blocked[rows.start : rows.stop + 1, columns.start : columns.stop + 1]
    inside = (
        blocked[height:, width:] - blocked[:-height, width:] - blocked[height:, :-width] + blocked[:-height, :-width]
    )
    middle = (slice(height // 2, height // 2 + inside.shape[0]), slice(width // 2, width // 2 + inside.shape[1]))
    fits = (inside == 0) & (cells.regions[rows, columns][middle] == region)
    if not fits.any():
        return None
    own = np.nonzero(cells.regions[rows, columns] == region)
    towards = [grid - center.mean() for grid, center in zip(np.ogrid[middle], own, strict=True)]
    # In a long region many places are as deep: the one in its middle looks best.
    score = cells.depth[rows, columns][middle] - 0.15 * np.hypot(*towards)
    row, column = np.unravel_index(np.where(fits, score, -np.inf).argmax(), fits.shape)
    top, left = rows.start + int(row), columns.start + int(column)
    return (2 * top + height) * cells.step // 2, (2 * left + width) * cells.step // 2
