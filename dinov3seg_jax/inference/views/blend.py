"""Scores of overlapping tiles, blended and labelled one row of tiles after the other (§7).

What is blended are scores on the decoder's grid, so that labels change only where the model changes its mind. Memory
knows nothing of a picture's height; and where it is wide, or the class list long, nothing of its width: then one band
of columns is worked through after the other.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise, product
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from dinov3seg_jax.inference.device.buckets import bucket
from dinov3seg_jax.inference.views.labels import PIECE, label_pieces, no_class, padded
from dinov3seg_jax.inference.views.linear_resize import Taps, taps
from dinov3seg_jax.inference.views.tiles import Axis, Source, Tiling, blend_weights, cut_tile

CLASSES_AT_ONCE = 64  # that are labelled
PIECES_AT_ONCE = 4

Score = Callable[[UInt8[np.ndarray, "b side side 3"]], Float[np.ndarray, "b t g g"]]  # in [0, 1], of the whole list


class Piece(NamedTuple):
    """Finished pixels."""

    picture: int  # which one
    top: int
    left: int
    labels: Int[np.ndarray, "h w"]
    confidence: Float[np.ndarray, "h w"]


class Shapes(NamedTuple):
    """What every picture has in common, so that all of them share the same programs."""

    cells: int  # along a side of a tile's scores
    classes: int  # in the list
    piece: int  # side of the squares of pixels that are labelled at once
    around: int  # side of the squares of cells that these lie in

    @classmethod
    def of(cls, side: int, cells: int, classes: int, stride: int, scale: float) -> "Shapes":
        """For tiles of `side` pixels every `stride` pixels in pictures that are scaled first."""
        piece = min(padded(math.ceil(stride / scale)), PIECE)
        return cls(cells, classes, piece, math.ceil(piece * scale * cells / side) + 4)


class Grid(NamedTuple):
    """The cells of all tiles along one axis of a picture."""

    starts: Int[np.ndarray, " n"]  # of the tiles
    weights: Float[np.ndarray, "n g"]  # see `tiles.blend_weights`
    pixels: Taps  # the cells that each pixel lies between
    length: int

    @classmethod
    def of(cls, axis: Axis, cells: int) -> "Grid":
        """For tiles of so many cells."""
        starts = axis.starts * cells // axis.side
        length = int(starts[-1]) + cells
        ratio = axis.scaled / axis.length * cells / axis.side
        return cls(starts, blend_weights(starts, cells), taps(length, axis.length, ratio), length)

    def tiles_over(self, first: int, last: int) -> Int[np.ndarray, " m"]:
        """Indices of the tiles that hold some of the cells first..last."""
        return np.flatnonzero((self.starts <= last) & (self.starts + self.weights.shape[1] > first))


class Band:
    """Some columns of a picture: takes tiles in, and gives out the labels that no tile to come can change."""

    def __init__(self, tiling: Tiling, shapes: Shapes, columns: tuple[int, int]):
        """Plan it; `columns` are its first cell and the one after its last."""
        self._rows, self._columns = (Grid.of(axis, shapes.cells) for axis in tiling)
        self._shapes = shapes
        first, last = columns
        # A pixel lies between a cell of the band and the next one, which may be another band's.
        self._first, self._last = first, min(last + 1, self._columns.length)
        left, right = np.searchsorted(self._columns.pixels.first, columns)
        self._left, self._right = int(left), int(right)
        over = self._columns.tiles_over(first, last)
        self.tiles = list(product(range(len(self._rows.starts)), map(int, over)))  # as (row, column)
        # The last finished row, then those of the present tiles.
        self._scores = np.zeros((shapes.classes, 1 + shapes.cells, self._last - first), np.float32)
        self._done = 0  # rows of pixels

    def add(self, row: int, column: int, scores: Float[np.ndarray, "t g g"]) -> None:
        """Take in one of `tiles`; they come in their order."""
        start = int(self._columns.starts[column])
        first, last = max(start, self._first), min(start + self._shapes.cells, self._last)
        own = slice(first - start, last - start)
        weights = np.outer(self._rows.weights[row], self._columns.weights[column][own])
        self._scores[:, 1:, first - self._first : last - self._first] += scores[:, :, own] * weights

    def finish(self, row: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Top, left, labels and confidence of the pixels that are known once a whole row of tiles is."""
        starts = self._rows.starts
        following = int(starts[row + 1]) if row + 1 < len(starts) else self._rows.length
        ready = int(np.searchsorted(self._rows.pixels.second, following))
        side = self._shapes.piece
        corners = list(product(range(self._done, ready, side), range(self._left, self._right, side)))
        for some in _batched(corners, PIECES_AT_ONCE):
            labels, confidence = self._label(some, int(starts[row]) - 1)
            for place, (top, left) in enumerate(some):
                own = place, slice(min(side, ready - top)), slice(min(side, self._right - left))
                yield top, left, labels[own], confidence[own]
        self._done = ready
        passed = following - int(starts[row])
        kept = self._scores.shape[1] - passed
        self._scores[:, :kept] = self._scores[:, passed:].copy()
        self._scores[:, kept:] = 0

    def _label(self, corners: list[tuple[int, int]], above: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and confidence of pieces; `above` is the grid's row that the held scores begin with."""
        shapes = self._shapes
        filled = [*corners, *corners[-1:] * (PIECES_AT_ONCE - len(corners))]
        down = [self._rows.pixels.part(top, shapes.piece) for top, _ in filled]
        across = [self._columns.pixels.part(left, shapes.piece) for _, left in filled]
        origins = [(int(rows.first[0]), int(columns.first[0])) for rows, columns in zip(down, across, strict=True)]
        rows, columns = _locate(down, shapes.around), _locate(across, shapes.around)
        best = no_class(len(filled), shapes.piece)
        length = min(bucket(shapes.classes), CLASSES_AT_ONCE)
        for first in range(0, shapes.classes, length):
            scores = np.zeros((len(filled), length, shapes.around, shapes.around), np.float32)
            for place, (top, left) in enumerate(origins):
                high, wide = top - above, left - self._first
                held = self._scores[first : first + length, high : high + shapes.around, wide : wide + shapes.around]
                scores[place][tuple(map(slice, held.shape))] = held
            real = np.arange(first, first + length) < shapes.classes
            best = label_pieces(best, scores, real, np.int32(first), np.int32(0), rows, columns)
        return jax.device_get(best)


def label_tiles(
    pictures: Iterable[tuple[Source, Tiling]],
    score: Score,
    shapes: Shapes,
    batch_size: int,
    widest: int,
    progress: Callable[[int], object] = lambda tiles: None,
) -> Iterator[Piece]:
    """Label pictures of any sizes, of which only parts are ever held.

    Args:
        pictures: one after the other.
        score: is given `batch_size` tiles at a time, of which the last ones may be repeated.
        shapes: of the tiles.
        batch_size: tiles of one picture or several.
        widest: cells that a band holds at most; wider pictures are cut into several, which both run the tiles that
            lie over their common edge.
        progress: is told how many tiles were done.

    Yields:
        Every pixel once, from top to bottom in each band.
    """

    def all_tiles() -> Iterator[tuple[int, Source, Tiling, Band, int, int]]:
        for index, (source, tiling) in enumerate(pictures):
            for columns in bands(tiling, shapes, widest):
                band = Band(tiling, shapes, columns)
                for row, column in band.tiles:
                    yield index, source, tiling, band, row, column

    for batch in _batched(all_tiles(), batch_size):
        pixels = [cut_tile(source, tiling, row, column) for _, source, tiling, _, row, column in batch]
        scores = score(np.stack(pixels + pixels[-1:] * (batch_size - len(pixels))))
        for (index, _, _, band, row, column), own in zip(batch, scores, strict=False):
            band.add(row, column, own)
            if column == band.tiles[-1][1]:
                for piece in band.finish(row):
                    yield Piece(index, *piece)
        progress(len(batch))


def bands(tiling: Tiling, shapes: Shapes, widest: int) -> list[tuple[int, int]]:
    """First cell, and the one after the last, of bands of nearly equal width that a picture is worked through in."""
    length = Grid.of(tiling.columns, shapes.cells).length
    edges = np.linspace(0, length, -(-length // widest) + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def count_tiles(tiling: Tiling, shapes: Shapes, widest: int) -> int:
    """How many tiles `label_tiles` runs for a picture."""
    columns = Grid.of(tiling.columns, shapes.cells)
    over = sum(len(columns.tiles_over(*band)) for band in bands(tiling, shapes, widest))
    return over * len(tiling.rows.starts)


def _locate(axes: Sequence[Taps], around: int) -> Taps:
    """The taps of several pieces, counted from the first cell of each; what no result needs stays inside."""
    first, second, weight = (np.stack(values) for values in zip(*axes, strict=True))
    origins = first[:, :1]
    return Taps(np.minimum(first - origins, around - 1), np.minimum(second - origins, around - 1), weight)


def _batched(items: Iterable, size: int) -> Iterator[list]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
