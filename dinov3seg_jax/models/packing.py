"""2 x 2 cells of a fine grid side by side in the channels of a coarse one, and what is done to maps that lie so.

Where a decoder has 32 or 64 channels, a TPU's compiler fills tiles up, and turns maps between operations. Packed maps
have four times the channels. A convolution of 3 x 3 cells then is one of 2 x 2 packed ones: from cells to what lies
around the corners between them, or from there back to cells.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.models.functions import convolve


def corner_places() -> Float[np.ndarray, "2 3 2 2"]:
    """Along one axis: [p, a, l, r] is 1 where tap a of finer cell p around a corner falls on half r of cell l."""
    places = np.zeros((2, 3, 2, 2), np.float32)
    for p in range(2):
        for a in range(3):
            places[p, a, (p + a) // 2, (p + a) % 2] = 1
    return places


def pack(x: Float[Array, "n h2 w2 c"]) -> Float[Array, "n h w c4"]:
    """Of an even grid; the channels of a cell lie together."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(n, h // 2, w // 2, 4 * c)


def unpack(x: Float[Array, "*n h w c4"]) -> Float[Array, "*n h2 w2 c"]:
    """What `pack` had packed."""
    *n, h, w, c = x.shape
    return x.reshape(*n, h, w, 2, 2, c // 4).swapaxes(-4, -3).reshape(*n, 2 * h, 2 * w, c // 4)


def surround(x: Float[Array, "n h w c"]) -> Float[Array, "n h+2 w+2 c"]:
    """With zeros on all sides, by hand, or a CPU takes 15 times as long for gradients."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def convolve_packed(
    x: Float[Array, "n h w c4"], kernel: Float[Array, "3 3 c o"], dtype: DTypeLike
) -> Float[Array, "n h-1 w-1 o4"]:
    """A convolution of 3 x 3 cells: from packed cells to the four around each inner corner, or the other way."""
    places, kernel = jnp.asarray(corner_places(), dtype), kernel.astype(dtype)
    packed = jnp.einsum("palr,qbks,abco->lkrscpqo", places, places, kernel, precision=jax.lax.Precision.HIGHEST)
    return convolve(x, packed.reshape(2, 2, x.shape[-1], -1), "VALID", dtype)


def norm_relu(norm: nnx.GroupNorm, x: Float[Array, "n h w c4"], rim: bool) -> Float[Array, "n h w c4"]:
    """Group norm and ReLU of packed maps.

    Args:
        norm: of c channels.
        x: the maps.
        rim: the outermost cells lie beyond the grid: they do not count, and become 0, as a convolution wants them.
    """
    n, h, w, channels = x.shape
    inside = _inside(h, w, channels) if rim else None
    cells = 4 * (h - 1) * (w - 1) if rim else 4 * h * w

    def mean(values: Array) -> Array:
        if inside is not None:
            values = values * inside
        sums = values.sum((1, 2)).reshape(n, 4, norm.num_groups, norm.group_size).sum((1, 3))
        means = sums[:, None, :, None] / (cells * norm.group_size)
        return jnp.broadcast_to(means, (n, 4, norm.num_groups, norm.group_size)).reshape(n, 1, 1, channels)

    wide = x.astype(jnp.float32)
    means = mean(wide)
    centre = jax.lax.stop_gradient(means)  # where it lies changes no value, so its gradient need not pass the maps
    centred = wide - centre
    assert norm.scale is not None
    assert norm.bias is not None
    scale, bias = (jnp.tile(parameter[...], 4) for parameter in (norm.scale, norm.bias))
    scale = jax.lax.rsqrt(mean(centred * centred) + norm.epsilon) * scale
    normed = centred * scale + (bias - (means - centre) * scale)
    activated = jax.nn.relu(normed.astype(x.dtype))
    return activated if inside is None else activated * inside.astype(x.dtype)


def _inside(h: int, w: int, channels: int) -> Float[np.ndarray, "1 h w c4"]:
    cells = np.zeros((2 * h, 2 * w), np.float32)
    cells[1:-1, 1:-1] = 1
    packed = cells.reshape(h, 2, w, 2).swapaxes(1, 2).reshape(1, h, w, 4)
    return np.repeat(packed, channels // 4, axis=-1)
