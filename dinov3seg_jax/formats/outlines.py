"""Regions as polygons along the edges of pixels, a strip of rows at a time.

What a strip's last row cuts is put together again when all of it has been seen. So memory knows nothing of the
picture's height, but for the outlines of regions that are not yet at their end.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.formats.answer import NO_DATA, Answer
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.regions import Regions, find_regions, joined

STRIP = 2**22  # pixels


class Region(NamedTuple):
    """Pixels of one class that touch each other."""

    name: str  # of the class
    label: int  # of it
    shape: Any  # shapely's polygon, in pixels from the top left corner: x to the right, y down
    area: int  # pixels, whatever the outline was simplified to
    confidence: float  # the mean


class Outlines(NamedTuple):
    """Polygons, in pixels from the top left corner: x to the right, y down."""

    shapes: np.ndarray  # shapely's, [n]
    classes: Int[np.ndarray, " n"]
    areas: Int[np.ndarray, " n"]  # pixels of the region, whatever its outline was simplified to
    sums: Float[np.ndarray, " n"]  # of their confidence

    def confidences(self) -> Float[np.ndarray, " n"]:
        """The mean over each region."""
        return self.sums / self.areas

    def where(self, chosen: np.ndarray) -> "Outlines":
        """Those of a mask, or of indices."""
        return Outlines(*(column[chosen] for column in self))

    def and_these(self, others: "Outlines") -> "Outlines":
        """Both, one after the other."""
        return Outlines(*map(np.concatenate, zip(self, others, strict=True)))


def outlines(answer: Answer, outputs: Outputs, purpose: str, extra: str, strip: int = STRIP) -> Iterator[Outlines]:
    """The polygons of all regions that are large enough, from top to bottom.

    Neighbours share their borders, simplified or not: they are simplified together, and where a strip is cut, borders
    stay as they are.

    Args:
        answer: a labelled picture.
        outputs: says how large a region has to be, and how far a border may move.
        purpose: what an error says they are needed for.
        extra: of this package, which brings what draws them.
        strip: pixels that are worked on together.

    Yields:
        Regions that are complete, some at a time; there may be none of them.

    Raises:
        UserError: rasterio or shapely is not installed.
    """
    features = needed("rasterio.features", extra, purpose)
    shapely = needed("shapely", extra, purpose)
    least = outputs.least_areas(answer.names)
    rows = max(strip // answer.width, 1)
    above = Outlines(np.empty(0, object), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    labels_above, places_above = np.empty(0, np.int64), np.empty(0, np.int64)  # of the last row, and in `above`
    for top in range(0, answer.height, rows):
        labels = np.asarray(answer.labels[top : top + rows])
        regions = find_regions(labels, np.asarray(answer.confidence[top : top + rows]))
        found = above.and_these(_trace(features, shapely, regions, top, outputs.simplify))
        first, last = regions.ids[0] + len(above.areas), regions.ids[-1] + len(above.areas)
        goes_on = labels_above == labels[0, : len(labels_above)]
        group = joined(places_above[goes_on], first[: len(labels_above)][goes_on], len(found.areas))
        found = _grouped(shapely, found, group)
        is_last = top + len(labels) >= answer.height
        opened = np.empty(0, np.int64) if is_last else np.unique(group[last])
        complete = np.ones(len(found.areas), bool)
        complete[opened] = False
        finished = found.where(complete)
        # What is not written need not be put together.
        finished = finished.where((finished.classes != NO_DATA) & (finished.areas >= least[finished.classes]))
        yield finished._replace(shapes=_united(shapely, finished.shapes))
        above = found.where(opened)
        labels_above, places_above = labels[-1], np.searchsorted(opened, group[last])


def all_outlines(answer: Answer, outputs: Outputs, purpose: str, extra: str) -> Outlines:
    """All polygons of a picture; see `outlines`."""
    first, *others = outlines(answer, outputs, purpose, extra)
    for more in others:
        first = first.and_these(more)
    return first


def _trace(features: Any, shapely: Any, regions: Regions, top: int, tolerance: float) -> Outlines:
    """The polygons of a strip, in the order of its regions."""
    rings, rings_in, ids = [], [], []
    for geometry, region in features.shapes(regions.ids.astype(np.int32), connectivity=4):
        rings += geometry["coordinates"]
        rings_in.append(len(geometry["coordinates"]))
        ids.append(int(region))
    points = np.concatenate([np.asarray(ring, np.float64) for ring in rings])
    points[:, 1] += top
    ends = np.cumsum([0, *map(len, rings)]), np.cumsum([0, *rings_in])
    shapes = np.empty(len(ids), object)
    shapes[ids] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, ends)
    if tolerance:
        # A border is the same for both sides only where both have the same corners.
        shapes = shapely.coverage_simplify(shapely.coverage_clean(shapes), tolerance, simplify_boundary=False)
    return Outlines(shapes, regions.classes, regions.areas, regions.sums)


def _grouped(shapely: Any, pieces: Outlines, group: Int[np.ndarray, " n"]) -> Outlines:
    """One row for each group, whose shape holds all of its pieces."""
    count = int(group.max()) + 1
    if count == len(group) and (group == np.arange(count)).all():
        return pieces
    parts, owners = shapely.get_parts(pieces.shapes, return_index=True)
    order = np.argsort(group[owners], kind="stable")
    shapes = shapely.multipolygons(parts[order], indices=group[owners][order])
    classes = np.empty(count, np.int64)
    classes[group] = pieces.classes
    areas, sums = np.zeros(count, np.int64), np.bincount(group, pieces.sums)
    np.add.at(areas, group, pieces.areas)
    return Outlines(shapes, classes, areas, sums)


def _united(shapely: Any, shapes: np.ndarray) -> np.ndarray:
    """Each shape as one polygon, without the corners that a cut left in straight lines."""
    parts, owners = shapely.get_parts(shapes, return_index=True)
    if len(parts) == len(shapes):
        return parts
    united = np.empty(len(shapes), object)
    ends = np.searchsorted(owners, np.arange(len(shapes) + 1))
    for place, (first, last) in enumerate(itertools.pairwise(ends)):
        cut = last - first > 1
        united[place] = shapely.simplify(shapely.union_all(parts[first:last]), 0) if cut else parts[first]
    return united
