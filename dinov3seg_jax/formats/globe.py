"""From pixels to longitude and latitude (WGS 84), as RFC 7946 wants them."""

from typing import Any

import numpy as np
from jaxtyping import Float

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.earth import Ground
from dinov3seg_jax.formats.libraries import needed

DEGREES = "EPSG:4326"
DECIMALS = 9  # of a degree: a tenth of a millimetre
BEND = 0.02  # pixels: a straight line of one system is a curve in another, which short lines come so near to
PIECES = 8  # that a line across the picture has at least
LINES = np.array([[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]], float)
HALF_TURN, WHOLE_TURN = 180.0, 360.0


def on_globe(shapely: Any, shapes: np.ndarray, ground: Ground, answer: Answer) -> np.ndarray:
    """Polygons in longitude and latitude, cut in two where the longitude jumps from 180 to -180.

    Args:
        shapely: the module.
        shapes: in pixels.
        ground: that the picture shows.
        answer: the picture.

    Raises:
        UserError: a region goes around a pole, which no polygon of longitudes can.
    """
    if not len(shapes):
        return shapes
    if not ground.crs.is_geographic:
        shapes = shapely.segmentize(shapes, _longest_line(ground, answer.height, answer.width))
    shapes = shapely.transform(shapes, lambda points: np.round(_degrees(ground, points), DECIMALS))
    if not ground.crs.is_geographic:
        jumping = _jumping(shapely, shapes)
        shapes[jumping] = shapely.transform(shapes[jumping], _eastwards)
        if _jumping(shapely, shapes[jumping]).any():
            raise UserError(
                f"{answer.file} has a region around a pole, which GeoJSON cannot hold; use the format gpkg instead"
            )
    west, _, east, _ = shapely.bounds(shapes).T
    for place in np.flatnonzero((west < -HALF_TURN) | (east > HALF_TURN)):
        shapes[place] = _cut(shapely, shapes[place])
    return shapes


def _longest_line(ground: Ground, height: int, width: int) -> float:
    """Pixels that a line may be long so that its middle is where it was; how far it bends grows with the square."""
    starts, ends = LINES[:, :2] * (width, height), LINES[:, 2:] * (width, height)
    start, middle, end = (_degrees(ground, points) for points in (starts, (starts + ends) / 2, ends))
    # Degrees that a pixel takes there.
    pixel = np.abs(end - start).max(axis=1) / np.hypot(*(ends - starts).T)
    length = np.hypot(*(ends - starts).T)
    bend = np.abs((start + end) / 2 - middle).max(axis=1) / np.maximum(pixel, np.finfo(float).tiny)
    longest = length * np.sqrt(BEND / np.maximum(bend, np.finfo(float).tiny))
    return max(min(longest.min(), max(height, width) / PIECES), 1.0)


def _degrees(ground: Ground, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Columns and rows to longitude and latitude."""
    warp = needed("rasterio.warp", "geo", "the format geojson")
    return np.stack(warp.transform(ground.crs, DEGREES, *ground.places(points).T), axis=-1)


def _jumping(shapely: Any, shapes: np.ndarray) -> np.ndarray:
    """Which polygons have a line from one end of the longitudes to the other."""
    rings, owners = shapely.get_rings(shapes, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    jumps = (np.abs(np.diff(points[:, 0])) > HALF_TURN) & (ring[1:] == ring[:-1])
    found = np.zeros(len(shapes), bool)
    found[owners[ring[1:][jumps]]] = True
    return found


def _eastwards(points: np.ndarray) -> np.ndarray:
    return np.stack([np.where(points[:, 0] < 0, points[:, 0] + WHOLE_TURN, points[:, 0]), points[:, 1]], axis=-1)


def _cut(shapely: Any, shape: Any) -> Any:
    """A polygon of longitudes beyond 180 as several within."""
    parts = []
    for turn in (-WHOLE_TURN, 0.0, WHOLE_TURN):
        window = shapely.box(turn - HALF_TURN, -90, turn + HALF_TURN, 90)
        inside = shapely.get_parts(shapely.intersection(shape, window))
        inside = inside[shapely.area(inside) > 0]  # where it only touches the window, it leaves a line
        parts += list(shapely.transform(inside, lambda points, turn=turn: points - (turn, 0.0)))
    return shapely.multipolygons(parts) if len(parts) > 1 else parts[0]
