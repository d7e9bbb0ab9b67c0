"""Connected regions: pixels of one class that touch each other above, below, left or right.

SciPy is loaded where it is used, as that takes long and most runs ask for no regions.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.formats.answer import NO_DATA


class Regions(NamedTuple):
    """All regions of a picture, those without data among them, in the order of their first pixels."""

    ids: Int[np.ndarray, "h w"]  # of each pixel's region
    classes: Int[np.ndarray, " n"]  # -1 where there are no data
    areas: Int[np.ndarray, " n"]  # pixels
    sums: Float[np.ndarray, " n"]  # of the confidence of their pixels

    def confidences(self) -> Float[np.ndarray, " n"]:
        """The mean over each region."""
        return self.sums / np.maximum(self.areas, 1)

    def kept(self, least: Int[np.ndarray, " t"]) -> Int[np.ndarray, " k"]:
        """The regions that have data, and at least so many pixels as `least` says of their class."""
        return np.flatnonzero((self.classes != NO_DATA) & (self.areas >= least[self.classes]))

    def boxes(self) -> Int[np.ndarray, "n 4"]:
        """Left, top, right, bottom; the last two are the first column and row beyond."""
        from scipy import ndimage

        found = ndimage.find_objects(self.ids + 1)
        return np.array([[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in found])


def find_regions(labels: Int[np.ndarray, "h w"], confidence: Float[np.ndarray, "h w"]) -> Regions:
    """The regions of a label map.

    Rows are cut into runs of one class first, and runs that touch are then joined, which takes one pass over the
    pixels for all classes together.

    Args:
        labels: of classes; -1 where there are no data, which are regions as well.
        confidence: of the same pixels.
    """
    begins = np.ones(labels.shape, bool)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = np.cumsum(begins.ravel(), dtype=np.int32).reshape(labels.shape) - 1
    touching = labels[1:] == labels[:-1]
    ids = joined(runs[:-1][touching], runs[1:][touching], int(runs[-1, -1]) + 1)[runs]
    flat, count = ids.ravel(), int(ids.max()) + 1
    classes = np.full(count, NO_DATA, labels.dtype)
    classes[flat] = labels.ravel()
    return Regions(
        ids, classes.astype(np.int64), np.bincount(flat, minlength=count), np.bincount(flat, confidence.ravel())
    )


def joined(first: Int[np.ndarray, " k"], second: Int[np.ndarray, " k"], count: int) -> Int[np.ndarray, " count"]:
    """For each of `count` things, the number of the group that it is in, where pairs of them belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]
