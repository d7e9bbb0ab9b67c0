"""Overlapping windows (§7): where they lie, cutting them out as one batch, and the mean where they overlap."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def window_size(height: int, width: int, window: int) -> tuple[int, int]:
    """Height and width of the windows: `window`, or the whole side where it is shorter."""
    return min(window, height), min(window, width)


def plan_windows(height: int, width: int, window: int, stride: int) -> Int[np.ndarray, "n 2"]:
    """Place windows so that they cover everything.

    The last window of a row or a column is shifted back so that it ends at the edge. Where height, width, window and
    stride are multiples of the patch size, so is every corner. The paper's 640 pixels, window 384 and stride 128 give
    3 x 3 windows.

    Args:
        height, width: of what is covered.
        window: side of the windows; a shorter side of the picture is covered by one window of its length.
        stride: distance of neighbours, 1..window, in the same unit.

    Returns:
        The top left corners as (row, column), int64 [n, 2], row by row, all different.

    Raises:
        ValueError: the stride leaves gaps, or a number is not positive.
    """
    if min(height, width, window, stride) < 1 or stride > window:
        raise ValueError(f"windows of {window} every {stride} cannot cover {height} x {width}")
    rows, columns = (_starts(length, window, stride) for length in (height, width))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def _starts(length: int, window: int, stride: int) -> np.ndarray:
    last = max(length - window, 0)
    return np.append(np.arange(0, last, stride), last)


def gather(
    images: Float[Array, "b h w c"], corners: Int[np.ndarray, "n 2"], size: tuple[int, int]
) -> Float[Array, "b*n wh ww c"]:
    """Cut windows out of every image; those of one image follow each other, in the order of `corners`.

    Args:
        images: any channels-last maps.
        corners: from `plan_windows`.
        size: height and width of a window, from `window_size`.
    """
    b, _, _, c = images.shape

    def cut(corner: Int[Array, "2"]) -> Float[Array, "b wh ww c"]:
        return jax.lax.dynamic_slice(images, (0, corner[0], corner[1], 0), (b, *size, c))

    return jax.vmap(cut, out_axes=1)(jnp.asarray(corners)).reshape(b * len(corners), *size, c)


def merge(
    windows: Float[Array, "b*n wh ww d"], corners: Int[np.ndarray, "n 2"], grid: tuple[int, int]
) -> Float[Array, "b h w d"]:
    """Lay windows over each other and take the mean where they overlap: the inverse of `gather`.

    Sums are float32 and run in the order of `corners`, so that the result is the same on every run.

    Args:
        windows: maps of the windows, those of one image following each other.
        corners: as in `gather`, in cells of these maps.
        grid: height and width of the result; the windows have to cover it.
    """
    _, height, width, d = windows.shape
    stacked = windows.reshape(-1, len(corners), height, width, d)
    b = stacked.shape[0]

    def add(total: Array, window: tuple[Array, Array]) -> tuple[Array, None]:
        values, corner = window
        start = (0, corner[0], corner[1], 0)
        below = jax.lax.dynamic_slice(total, start, values.shape)
        return jax.lax.dynamic_update_slice(total, below + values.astype(jnp.float32), start), None

    nothing = jnp.zeros((b, *grid, d), jnp.float32)
    total, _ = jax.lax.scan(add, nothing, (jnp.moveaxis(stacked, 1, 0), jnp.asarray(corners)))
    return (total / coverage(corners, (height, width), grid)[..., None]).astype(windows.dtype)


def coverage(corners: Int[np.ndarray, "n 2"], size: tuple[int, int], grid: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """How many windows cover each cell of the grid."""
    counts = np.zeros(grid, np.float32)
    for row, column in corners:
        counts[row : row + size[0], column : column + size[1]] += 1
    return counts
