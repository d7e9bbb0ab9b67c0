"""Layers that all parts share: dense, convolution, norms, upsampling, and how their parameters begin."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Initializer = Callable[..., Any]  # (key, shape, dtype) -> array

NORM_EPSILON = 1e-5  # DINOv3, dinov3.txt and CAT-Seg; SAM uses 1e-6. Flax's own default is 1e-6.


def normal(deviation: float) -> Initializer:
    """Normal initialiser that draws on the host when it can.

    Outside a trace it uses NumPy: compiling JAX's generator for every shape of a model takes a minute on a CPU.
    """

    def init(
        key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: object = None
    ) -> Array | np.ndarray:
        if isinstance(key, jax.core.Tracer):
            return deviation * jax.random.normal(key, shape, dtype)
        generator = np.random.Generator(np.random.Philox(key=np.asarray(jax.random.key_data(key), np.uint64)))
        return (deviation * generator.standard_normal(shape, np.float32)).astype(dtype)

    return init


def constant(value: float) -> Initializer:
    """Constant initialiser, on the host."""
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: np.full(shape, value, dtype)


def fan_in_normal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: object = None
) -> Array:
    """Normal with deviation 1/sqrt(fan-in), so that models of any width train from nothing."""
    return normal(math.prod(shape[:-1]) ** -0.5)(key, shape, dtype)


class Linear(nnx.Linear):
    """A dense layer."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            inputs, outputs, use_bias=bias, kernel_init=fan_in_normal, bias_init=constant(0), dtype=dtype, rngs=rngs
        )


class Conv(nnx.Conv):
    """A square convolution, zero-padded to keep the size unless told otherwise."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        bias: bool = True,
        padding: str = "SAME",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            inputs,
            outputs,
            (kernel, kernel),
            padding=padding,
            use_bias=bias,
            kernel_init=fan_in_normal,
            bias_init=constant(0),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: Array, *others: Any) -> Array:
        """Of a single cell it is a product, for which a TPU's compiler need not cut pictures up and turn them."""
        if self.kernel_size != (1, 1):
            return super().__call__(inputs, *others)
        product = inputs.astype(self.dtype) @ self.kernel[0, 0].astype(self.dtype)
        return product if self.bias is None else product + self.bias.astype(self.dtype)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis with the releases' epsilon."""

    def __init__(self, dim: int, *, epsilon: float = NORM_EPSILON, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            dim,
            epsilon=epsilon,
            use_fast_variance=False,
            bias_init=constant(0),
            scale_init=constant(1),
            dtype=dtype,
            rngs=rngs,
        )


class GroupNorm(nnx.GroupNorm):
    """Group normalisation with torch's epsilon."""

    def __init__(self, dim: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            dim,
            groups,
            epsilon=NORM_EPSILON,
            use_fast_variance=False,
            bias_init=constant(0),
            scale_init=constant(1),
            dtype=dtype,
            rngs=rngs,
        )


class Upsample(nnx.Module):
    """Transposed convolution whose stride equals its kernel: every cell becomes a factor x factor patch."""

    def __init__(self, inputs: int, outputs: int, factor: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.factor = factor
        self.outputs = outputs
        self.kernel = nnx.Param(fan_in_normal(rngs.params(), (inputs, factor * factor * outputs)))
        self.bias = nnx.Param(np.zeros(outputs, np.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        b, h, w, _ = x.shape
        f, o = self.factor, self.outputs
        patches = (x.astype(self.dtype) @ self.kernel.astype(self.dtype)).reshape(b, h, w, f, f, o)
        patches = patches + self.bias.astype(self.dtype)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * f, w * f, o)
