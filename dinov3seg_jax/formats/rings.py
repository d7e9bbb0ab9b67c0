"""A polygon with holes as one ring, for formats that know no holes."""

from typing import Any

import numpy as np
from jaxtyping import Float


def one_ring(shape: Any) -> Float[np.ndarray, "n 2"]:
    """The corners of a polygon, the first not repeated; a cut of no width joins each hole to what lies left of it.

    From the leftmost corner of a hole the cut goes straight to the left, to the outside or to a hole that begins
    farther left and is joined already. So no cut crosses anything.

    Args:
        shape: shapely's polygon.
    """
    ring = _corners(shape.exterior)
    holes = [_corners(hole) for hole in shape.interiors]
    for hole in sorted(holes, key=lambda corners: corners[:, 0].min()):
        hole = np.roll(hole, -np.lexsort(hole.T[::-1])[0], axis=0)
        x, y = hole[0]
        ends = np.roll(ring, -1, axis=0)
        low, high = np.minimum(ring[:, 1], ends[:, 1]), np.maximum(ring[:, 1], ends[:, 1])
        crossed = (low <= y) & (y <= high) & (low < high)
        rise = np.where(crossed, ends[:, 1] - ring[:, 1], 1)
        met = ring[:, 0] + (y - ring[:, 1]) * (ends[:, 0] - ring[:, 0]) / rise
        met = np.where(crossed & (met <= x), met, -np.inf)
        line = int(met.argmax())
        bridge = [[met[line], y]]
        ring = np.concatenate([ring[: line + 1], bridge, hole, hole[:1], bridge, ring[line + 1 :]])
    return ring


def _corners(ring: Any) -> Float[np.ndarray, "n 2"]:
    return np.asarray(ring.coords)[:-1]
