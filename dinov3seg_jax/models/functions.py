"""Functions of arrays that parts of the model share; they know no parameters, and need no Flax."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def gelu(x: Array) -> Array:
    """The exact (erf) GELU of every released model, in float32; JAX's default is the tanh approximation.

    In PyTorch's form: JAX's own exact one goes through erfc, which takes several times as long on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "i j c o"],
    padding: str | Sequence[tuple[int, int]],
    dtype: DTypeLike,
) -> Float[Array, "n h2 w2 o"]:
    """A convolution in `dtype`; `padding` is JAX's: "SAME", "VALID", or what is added before and after on both axes."""
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def resize_linear(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Bilinear, half-pixel centres, no antialiasing (torch's `align_corners=False`); a no-op at equal size."""
    if x.shape[1:3] == (height, width):
        return x
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "linear", antialias=False)


def linear_weights(positions: Float[np.ndarray, " outputs"], inputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """The matrix that reads `inputs` values linearly between each two of them; its rows sum to 1.

    Args:
        positions: in [0, inputs - 1].
        inputs: how many values there are along the axis.

    Returns:
        float64, for the caller to round: once, to the type that it computes in.
    """
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(inputs)))


def half_pixel_weights(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """The matrix of a linear resize along one axis, half-pixel centres, edges held; float64, see `linear_weights`."""
    return linear_weights(np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1), inputs)


def cubic_weights(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    """The matrix of torch's plain bicubic resize along one axis (DINOv3's specification, section 10.3).

    Half-pixel centres, a = -0.75, no antialiasing; of the four taps those beyond an edge count for the edge. JAX's and
    Pillow's kernel has a = -0.5.
    """
    a = -0.75
    centres = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    first = np.floor(centres).astype(np.int64) - 1
    weights = np.zeros((outputs, inputs))
    for tap in range(4):
        x = np.abs(centres - (first + tap))
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        np.add.at(weights, (np.arange(outputs), np.clip(first + tap, 0, inputs - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def resize_cubic(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Bicubic as torch's `interpolate` does it, without antialiasing; a no-op at equal size."""
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = cubic_weights(x.shape[1], height), cubic_weights(x.shape[2], width)
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


def l2_normalize(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """x / max(||x||, 1e-12) over the last axis, in float32; the gradient at 0 is 1e12 times the cotangent, not NaN."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
