"""From class scores on a coarse grid to labels at a picture's own size, in memory for one class and a strip of it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

STRIP_ROWS = 512
SIZE_STEP = 64  # strips are padded to multiples of this, so that pictures of many sizes share a compiled program


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
    best = BestClass(height, width)
    best.update(scores, class_mask)
    return best.result()


class BestClass:
    """The best class of each pixel of a picture so far, while the scores of a list come a few classes at a time."""

    def __init__(self, height: int, width: int):
        """`height` and `width` are the picture's."""
        self.height, self.width = height, width
        self._tops = range(0, height, STRIP_ROWS)
        self._best: list[tuple[Array, Array]] = [self._nothing(top) for top in self._tops]
        self._resize: tuple[list[np.ndarray], np.ndarray] | None = None  # rows of each strip, and columns

    def update(self, scores: Float[Array, "t h w"], class_mask: Bool[Array, " t"], first: int = 0) -> None:
        """Take in some of the classes, always on a grid of the same size; see `label_pixels`.

        `first` is the index of their first. Of equal scores that of the earlier call, then of the lower index counts.
        """
        if self._resize is None:
            self._resize = self._weights(*scores.shape[1:])
        rows, columns = self._resize
        for strip, weights in enumerate(rows):
            self._best[strip] = _label_strip(self._best[strip], scores, class_mask, first, weights, columns)

    def result(self) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
        """The indices and scores of the best classes; see `label_pixels`."""
        labels = np.empty((self.height, self.width), np.int32)
        confidence = np.empty((self.height, self.width), np.float32)
        for top, strip in zip(self._tops, self._best, strict=True):
            label, score = jax.device_get(strip)
            wanted = slice(top, min(top + STRIP_ROWS, self.height))
            labels[wanted] = label[: wanted.stop - top, : self.width]
            confidence[wanted] = score[: wanted.stop - top, : self.width]
        return labels, confidence

    def _nothing(self, top: int) -> tuple[Array, Array]:
        shape = _padded(min(self.height - top, STRIP_ROWS)), _padded(self.width)
        return jnp.zeros(shape, jnp.int32), jnp.full(shape, -1, jnp.float32)

    def _weights(self, h: int, w: int) -> tuple[list[np.ndarray], np.ndarray]:
        columns = bilinear_weights(w, self.width)
        rows = bilinear_weights(h, self.height)
        strips = [rows[top : top + STRIP_ROWS] for top in self._tops]
        return [_fill(strip) for strip in strips], _fill(columns)


def _padded(length: int) -> int:
    return -(-length // SIZE_STEP) * SIZE_STEP


def _fill(weights: np.ndarray) -> np.ndarray:
    return np.pad(weights, ((0, _padded(len(weights)) - len(weights)), (0, 0)))


def bilinear_weights(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """The matrix of a linear resize along one axis; rows sum to 1 and have at most two entries."""
    centres = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(inputs))).astype(np.float32)


@jax.jit
def _label_strip(
    best: tuple[Int[Array, "height width"], Float[Array, "height width"]],
    scores: Float[Array, "t h w"],
    class_mask: Bool[Array, " t"],
    first: Int[Array, ""],
    rows: Float[Array, "height h"],
    columns: Float[Array, "width w"],
) -> tuple[Int[Array, "height width"], Float[Array, "height width"]]:
    def keep_best(best: tuple[Array, Array], one: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        label, score = best
        index, grid, allowed = one
        resized = jnp.linalg.multi_dot([rows, grid, columns.T], precision=jax.lax.Precision.HIGHEST)
        better = allowed & (resized > score)
        return (jnp.where(better, index, label), jnp.where(better, resized, score)), None

    classes = first + jnp.arange(scores.shape[0], dtype=jnp.int32)
    return jax.lax.scan(keep_best, best, (classes, scores, class_mask))[0]
