"""From class scores on a coarse grid to labels at a picture's own size, in memory for one class and a strip of it."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from dinov3seg_jax.inference.devices import on_own_pictures, shared_out

STRIP_ROWS = 512
SHORTEST = 64

Labelled = tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width"]]  # classes and their scores


def label_pixels(
    scores: Float[Array, "t h w"], class_mask: Bool[Array, " t"], height: int, width: int
) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Resize the scores bilinearly (half-pixel centres, no antialiasing) and take the best class of each pixel.

    Args:
        scores: in [0, 1], on the device.
        class_mask: False for classes that cannot be chosen.
        height, width: of the picture.

    Returns:
        The classes' indices, int32, the first of equal ones; and their scores, float32 in [0, 1].
    """
    best = BestClass([(height, width)])
    best.update(scores[None], class_mask)
    (result,) = best.results()
    return result


class BestClass:
    """The best class of each pixel of some pictures so far, while the scores of a list come a few classes at a time.

    The pictures share strips of one size, so they should be few or alike. Strips are padded to the sizes of `padded`:
    pictures of many sizes share a few compiled programs.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], mesh: Mesh | None = None):
        """`sizes` are the pictures' heights and widths; each device of `mesh` has equally many of them."""
        self.sizes = sizes
        self._mesh = mesh
        height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
        self._rows, self._columns = padded(-(-height // -(-height // STRIP_ROWS))), padded(width)
        self._tops = range(0, height, self._rows)
        self._best: list[tuple[Array, Array]] = [self._nothing() for _ in self._tops]
        self._resize: tuple[list[np.ndarray], np.ndarray] | None = None  # rows of each strip, and columns

    def update(self, scores: Float[Array, "b t h w"], class_mask: Bool[Array, " t"], first: int = 0) -> None:
        """Take in some of the classes, always on a grid of the same size; see `label_pixels`.

        `first` is the index of their first. Of equal scores that of the earlier call, then of the lower index counts.
        """
        if self._resize is None:
            self._resize = self._weights(*scores.shape[2:])
        rows, columns = self._resize
        for strip, weights in enumerate(rows):
            so_far = self._best[strip]
            self._best[strip] = _label_strip(so_far, scores, class_mask, first, weights, columns, mesh=self._mesh)

    def results(self) -> list[Labelled]:
        """The indices and scores of the best classes in each picture; see `label_pixels`."""
        found = [(np.empty(size, np.int32), np.empty(size, np.float32)) for size in self.sizes]
        for top, strip in zip(self._tops, self._best, strict=True):
            for maps, values in zip(zip(*found, strict=True), jax.device_get(strip), strict=True):
                for whole, value in zip(maps, values, strict=True):
                    part = whole[top : top + self._rows]
                    part[:] = value[: len(part), : part.shape[1]]
        return found

    def _nothing(self) -> tuple[Array, Array]:
        shape = len(self.sizes), self._rows, self._columns
        empty = np.zeros(shape, np.int32), np.full(shape, -1, np.float32)  # which compiles nothing
        return jax.device_put(empty, None if self._mesh is None else shared_out(self._mesh))

    def _weights(self, h: int, w: int) -> tuple[list[np.ndarray], np.ndarray]:
        down = np.stack([_fill(bilinear_weights(h, height), len(self._tops) * self._rows) for height, _ in self.sizes])
        across = np.stack([_fill(bilinear_weights(w, width), self._columns) for _, width in self.sizes])
        return np.split(down, len(self._tops), axis=1), across


def padded(length: int) -> int:
    """The next of 64, 96, 128, 192, 256, 384, ...: at most half more."""
    power = max(SHORTEST, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > SHORTEST and length <= power * 3 // 4 else power


def _fill(weights: np.ndarray, length: int) -> np.ndarray:
    return np.pad(weights, ((0, length - len(weights)), (0, 0)))


def bilinear_weights(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """The matrix of a linear resize along one axis; rows sum to 1 and have at most two entries."""
    centres = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(inputs))).astype(np.float32)


@functools.partial(jax.jit, static_argnames="mesh")
def _label_strip(
    best: tuple[Int[Array, "b height width"], Float[Array, "b height width"]],
    scores: Float[Array, "b t h w"],
    class_mask: Bool[Array, " t"],
    first: Int[Array, ""],
    rows: Float[Array, "b height h"],
    columns: Float[Array, "b width w"],
    *,
    mesh: Mesh | None,
) -> tuple[Int[Array, "b height width"], Float[Array, "b height width"]]:
    @on_own_pictures(mesh, common=(2, 3))
    @functools.partial(jax.vmap, in_axes=(0, 0, None, None, 0, 0))
    def label(
        best: tuple[Array, Array], scores: Array, class_mask: Array, first: Array, rows: Array, columns: Array
    ) -> tuple[Array, Array]:
        def keep_best(best: tuple[Array, Array], one: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            label, score = best
            index, grid, allowed = one
            resized = jnp.linalg.multi_dot([rows, grid, columns.T], precision=jax.lax.Precision.HIGHEST)
            better = allowed & (resized > score)
            return (jnp.where(better, index, label), jnp.where(better, resized, score)), None

        classes = first + jnp.arange(scores.shape[0], dtype=jnp.int32)
        return jax.lax.scan(keep_best, best, (classes, scores, class_mask))[0]

    return label(best, scores, class_mask, first, rows, columns)
