"""Tiles: squares of one size that cover a picture of any size, and how much each counts where they overlap (§7).

The model sees every tile as a picture of its own, so one program serves all tiles of all pictures.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.data.resize import resize
from dinov3seg_jax.inference.views.windows import plan_windows


class Source(Protocol):
    """A picture that gives away parts of itself."""

    height: int
    width: int

    def read(self, top: int, bottom: int, left: int, right: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB of the rows top..bottom and the columns left..right, the latter of both excluded."""
        ...


class ArraySource:
    """A picture in memory."""

    def __init__(self, image: UInt8[np.ndarray, "h w 3"]):
        """Take RGB bytes."""
        self._image = image
        self.height, self.width = image.shape[:2]

    def read(self, top: int, bottom: int, left: int, right: int) -> UInt8[np.ndarray, "h w 3"]:
        """See `Source`."""
        return self._image[top:bottom, left:right]


class Axis(NamedTuple):
    """Tiles along the rows or the columns of a picture."""

    length: int  # of the picture, in its own pixels
    scaled: int  # what it is brought to; the tiles count in these pixels
    side: int  # of a tile
    starts: Int[np.ndarray, " n"]  # of the tiles, multiples of the patch size


class Tiling(NamedTuple):
    """All tiles of a picture: every start along the rows with every start along the columns."""

    rows: Axis
    columns: Axis


def plan_tiles(height: int, width: int, config: InferenceConfig, patch_size: int) -> Tiling:
    """Lay tiles of `config.image_size` over a picture of height and width, scaled by `config.tile_scale`.

    Neighbours share at least a quarter of a tile, if a tile has four patches or more. The last tile of a row or a
    column is shifted back to end at the last patch of the picture, which its mirror image fills up.
    """
    return Tiling(*(_plan_axis(length, config, patch_size) for length in (height, width)))


def _plan_axis(length: int, config: InferenceConfig, patch_size: int) -> Axis:
    side = config.image_size
    scaled = max(round(length * config.tile_scale), 1)
    covered = max(-(-scaled // patch_size) * patch_size, side)
    starts = plan_windows(covered, side, side, tile_stride(config, patch_size))[:, 0]
    return Axis(length, scaled, side, starts)


def tile_stride(config: InferenceConfig, patch_size: int) -> int:
    """Distance of neighbours: three quarters of a tile, rounded down to patches."""
    return max(config.image_size * 3 // 4 // patch_size, 1) * patch_size


def blend_weights(starts: Int[np.ndarray, " n"], length: int) -> Float[np.ndarray, "n length"]:
    """How much each cell of each tile counts; over the tiles that hold a cell, the weights sum to 1.

    A tile counts less and less in the quarter at either end, and nowhere 0. The weights of a picture's tiles are the
    products of those of its rows and its columns.

    Args:
        starts: of the tiles, in cells; together they leave no gap.
        length: of a tile.
    """
    places = np.arange(length) + 0.5
    ramp = np.minimum(np.minimum(places, length - places) / max(length / 4, 1), 1)
    total = np.zeros(starts[-1] + length)
    for start in starts:
        total[start : start + length] += ramp
    return np.stack([ramp / total[start : start + length] for start in starts]).astype(np.float32)


def cut_tile(source: Source, tiling: Tiling, row: int, column: int) -> UInt8[np.ndarray, "side side 3"]:
    """One tile; beyond the picture's edges lies its mirror image, again and again for one smaller than a tile."""
    down, across = (
        mirror(axis.starts[index] + np.arange(axis.side), axis.scaled)
        for axis, index in zip(tiling, (row, column), strict=True)
    )
    top, left = down.min(), across.min()
    part = read_scaled(source, tiling, int(top), int(down.max()) + 1, int(left), int(across.max()) + 1)
    return part[np.ix_(down - top, across - left)]


def mirror(places: Int[np.ndarray, " n"], length: int) -> Int[np.ndarray, " n"]:
    """Places that are reflected at the edges until they lie in 0..length - 1; the last one comes twice."""
    folded = places % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def read_scaled(
    source: Source, tiling: Tiling, top: int, bottom: int, left: int, right: int
) -> UInt8[np.ndarray, "h w 3"]:
    """A part of the scaled picture, with antialiased bilinear weights: as if all of it had been resized first."""
    if all(axis.scaled == axis.length for axis in tiling):
        return source.read(top, bottom, left, right)
    ratios = [axis.length / axis.scaled for axis in tiling]
    spans = [(top, bottom), (left, right)]
    needed, boxes = [], []
    for axis, ratio, (first, last) in zip(tiling, ratios, spans, strict=True):
        support = math.ceil(max(ratio, 1)) + 1
        start = max(math.floor(first * ratio) - support, 0)
        stop = min(math.ceil(last * ratio) + support, axis.length)
        needed.append((start, stop))
        boxes.append((first * ratio - start, min(last * ratio, axis.length) - start))
    part = source.read(*needed[0], *needed[1])
    box = (boxes[1][0], boxes[0][0], boxes[1][1], boxes[0][1])
    return resize(part, (bottom - top, right - left), Image.Resampling.BILINEAR, box)
