"""Attention of the towers: one formula, and the kernels that compute it."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.kernels import LONG, Kernel, cudnn_attention, has_kernel, takes_cudnn
from dinov3seg_jax.models.layers import Linear
from dinov3seg_jax.models.mesh import BY_EXAMPLE, divides, on_each_device

Rotation = Callable[[Float[Array, "b n heads d"]], Float[Array, "b n heads d"]]

LINEAR_ATTENTION_EPSILON = 1e-6  # added to its denominators
SCORES_OF_AN_IMAGE = 2**22  # of all heads, at most; where there are more, the heads go one by one


def attend(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    *,
    causal: bool = False,
    kernel: Kernel = "auto",
) -> Float[Array, "b n heads d"]:
    """softmax(q k / sqrt(d)) v.

    Args:
        query, key, value: of any float type; "cudnn" takes bfloat16 alone.
        causal: token i sees the tokens up to i.
        kernel: "xla", plain matrix products; "cudnn", the flash attention of NVIDIA's library; "splash", that of JAX
            for TPUs, where the batch divides; "portable", plain products too, except that long sequences go in parts
            on a CPU (see `_attend_in_parts`); "auto", the same, except that they go through "cudnn" where that fits
            (see `takes_cudnn`).

    Raises:
        UserError: "cudnn" without a GPU or with another type, "splash" without a TPU.
    """
    if kernel == "splash":
        if not has_kernel(kernel, query.dtype):
            raise UserError(
                f"model.attention 'splash' needs a TPU, and this is {jax.default_backend()}; "
                "set --config.model.attention=auto."
            )
        if divides(len(query)):
            from dinov3seg_jax.models.splash import splash_attention  # here, because importing Pallas takes a while

            return on_each_device(partial(splash_attention, causal=causal), (BY_EXAMPLE,) * 3)(query, key, value)
    if kernel == "cudnn":
        if not has_kernel(kernel, query.dtype):
            raise UserError(
                f"model.attention 'cudnn' needs a GPU and bfloat16, and this is {query.dtype} on "
                f"{jax.default_backend()}; set --config.model.attention=auto, or on a GPU model.dtype=bfloat16."
            )
        return cudnn_attention(query, key, value, causal=causal)
    if kernel == "auto" and divides(len(query)) and takes_cudnn(query.dtype, query.shape[-1], key.shape[1]):
        return on_each_device(partial(cudnn_attention, causal=causal), (BY_EXAMPLE,) * 3)(query, key, value)
    if kernel in ("xla", "splash") or causal or key.shape[1] < LONG:
        before = penalty(np.tri(query.shape[1], key.shape[1], dtype=bool)) if causal else None
        return dot_product_attention(query, key, value, before)
    return jax.lax.platform_dependent(
        query, key, value, cpu=_attend_in_parts, default=lambda q, k, v: dot_product_attention(q, k, v)
    )


def dot_product_attention(
    query: Float[Array, "*b n heads d"],
    key: Float[Array, "*b m heads d"],
    value: Float[Array, "*b m heads d"],
    bias: Float[np.ndarray | Array, "*b heads n m"] | None = None,
) -> Float[Array, "*b n heads d"]:
    """softmax(q k / sqrt(d) + bias) v.

    Scores and softmax are float32, whatever the dtype; the sum divides the d channels instead of the m weights. As
    `jax.nn.dot_product_attention`, which takes 1.4 to 6 times as long on a CPU.

    Args:
        query, key, value: of any float type.
        bias: of any shape that broadcasts; see `penalty`.
    """
    query, key, value = (jnp.swapaxes(part, -3, -2) for part in (query, key, value))
    scores = jnp.einsum("...nd,...md->...nm", query, key, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("...nm,...md->...nd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return jnp.swapaxes((mixed / weights.sum(axis=-1, keepdims=True)).astype(value.dtype), -3, -2)


def penalty(allowed: Bool[np.ndarray | Array, "*n"]) -> Float[np.ndarray | Array, "*n"]:
    """A bias that keeps pairs apart that are not allowed; it costs a CPU less than choosing."""
    numpy_or_jax = np if isinstance(allowed, np.ndarray) else jnp
    return numpy_or_jax.where(allowed, np.float32(0), np.float32(-1e30))


def _attend_in_parts(query: Array, key: Array, value: Array) -> Array:
    """One image or one head at a time, so that its scores stay in the cache: up to 3 times as fast, in less memory."""
    b, n, heads, d = query.shape
    if heads * n * key.shape[1] <= SCORES_OF_AN_IMAGE:
        return jax.lax.map(lambda image: dot_product_attention(*image), (query, key, value))
    rows = tuple(x.swapaxes(1, 2).reshape(b * heads, -1, 1, d) for x in (query, key, value))
    attended = jax.lax.map(lambda head: dot_product_attention(*head), rows)
    return attended.reshape(b, heads, -1, d).swapaxes(1, 2)


class Attention(nnx.Module):
    """Multi-head self-attention; query, key and value are separate so that each can train by itself (§1)."""

    def __init__(
        self, dim: int, heads: int, *, qkv_bias: bool, kernel: Kernel = "auto", dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.heads, self.kernel = heads, kernel
        self.query = Linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.key = Linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.value = Linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def project(self, x: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Return query, key and value, each [b, n, heads, d / heads]."""
        shape = (*x.shape[:-1], self.heads, -1)
        return self.query(x).reshape(shape), self.key(x).reshape(shape), self.value(x).reshape(shape)

    def __call__(
        self, x: Float[Array, "b n d"], *, rotate: Rotation | None = None, causal: bool = False
    ) -> Float[Array, "b n d"]:
        """Attend among the n tokens; `rotate` is applied to queries and keys."""
        query, key, value = self.project(x)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        attended = attend(query, key, value, causal=causal, kernel=self.kernel)
        return self.out(attended.reshape(x.shape))
