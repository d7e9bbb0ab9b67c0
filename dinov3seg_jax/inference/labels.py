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
    columns = bilinear_weights(scores.shape[2], width)
    columns = np.pad(columns, ((0, -width % SIZE_STEP), (0, 0)))
    rows = bilinear_weights(scores.shape[1], height)
    labels, confidence = np.empty((height, width), np.int32), np.empty((height, width), np.float32)
    for top in range(0, height, STRIP_ROWS):
        strip = rows[top : top + STRIP_ROWS]
        padded = np.pad(strip, ((0, -len(strip) % SIZE_STEP), (0, 0)))
        best, best_score = jax.device_get(_label_strip(scores, class_mask, padded, columns))
        labels[top : top + len(strip)] = best[: len(strip), :width]
        confidence[top : top + len(strip)] = best_score[: len(strip), :width]
    return labels, confidence


def bilinear_weights(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """The matrix of a linear resize along one axis; rows sum to 1 and have at most two entries."""
    centres = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(inputs))).astype(np.float32)


@jax.jit
def _label_strip(
    scores: Float[Array, "t h w"],
    class_mask: Bool[Array, " t"],
    rows: Float[Array, "height h"],
    columns: Float[Array, "width w"],
) -> tuple[Int[Array, "height width"], Float[Array, "height width"]]:
    def keep_best(best: tuple[Array, Array], one: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        label, score = best
        index, grid, allowed = one
        resized = jnp.linalg.multi_dot([rows, grid, columns.T], precision=jax.lax.Precision.HIGHEST)
        better = allowed & (resized > score)
        return (jnp.where(better, index, label), jnp.where(better, resized, score)), None

    shape = rows.shape[0], columns.shape[0]
    nothing = jnp.zeros(shape, jnp.int32), jnp.full(shape, -1, jnp.float32)
    classes = jnp.arange(scores.shape[0], dtype=jnp.int32)
    (label, score), _ = jax.lax.scan(keep_best, nothing, (classes, scores, class_mask))
    return label, score
