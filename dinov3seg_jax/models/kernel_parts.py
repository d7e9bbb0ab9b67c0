"""What the kernels for TPUs share: how large they may be, and the layers that they compute in fast memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from dinov3seg_jax.models.kernels import on_tpu
from dinov3seg_jax.models.layers import NORM_EPSILON
from dinov3seg_jax.models.mesh import divides

SUBLANES, LANES = 16, 128  # a tile of bfloat16
INTERPRET = False  # True runs the kernels anywhere, slowly: for tests
FAST_MEMORY = 48 * 2**20  # bytes that the kernels may use: v5p has 64 MB a core, v5e and v6e have 128
PARAMETERS = pltpu.CompilerParams(
    vmem_limit_bytes=FAST_MEMORY, dimension_semantics=("parallel", "arbitrary", "arbitrary")
)

Weights = dict[str, Float[Array, "_ _"]]  # by the names of the block's parameters; vectors as one row
Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]

ROWS: Dimensions = ((1,), (0,)), ((), ())  # x w
BETWEEN: Dimensions = ((2,), (2,)), ((0,), (0,))  # q k', one by one
MIXED: Dimensions = ((2,), (1,)), ((0,), (0,))  # p v, one by one
SUMMED: Dimensions = ((1,), (1,)), ((0,), (0,))  # k' v, one by one


def available(batch: int) -> bool:
    """Whether there are TPUs, and they share the batch out evenly."""
    return (on_tpu() or INTERPRET) and divides(batch)


def cost(x: Array, passes: int, products: int, others: int) -> pl.CostEstimate:
    """What a kernel computes and moves, for the compiler and for `costs`.

    Args:
        x: the maps that it reads, as it writes them.
        passes: 1 forwards; backwards 3, of which one does the forward pass again.
        products: operations of the matrix unit in one pass.
        others: transcendental ones.
    """
    moved = 2 if passes == 1 else 3  # backwards, what has changed is read too
    return pl.CostEstimate(
        flops=passes * products,
        transcendentals=min(passes, 2) * others,
        bytes_accessed=moved * x.size * x.dtype.itemsize,
    )


def matrices(weights: Weights) -> int:
    """Numbers in the matrices of a block; a row takes two operations for each."""
    return sum(array.size for name, array in weights.items() if name.endswith("/kernel"))


def read(names: list[str], held: Any) -> Weights:
    """What the references `held` hold, by name."""
    return {name: reference[...] for name, reference in zip(names, held, strict=True)}


def begin(sums: Any, first: Array) -> None:
    """Set the references `sums` to zero in their first step."""

    @pl.when(first)
    def _() -> None:
        for total in sums:
            total[...] = jnp.zeros_like(total)


def add(sums: Any, terms: Any) -> None:
    """Add `terms` to what the references `sums` hold."""
    for total, term in zip(sums, terms, strict=True):
        total[...] += term.astype(total.dtype)


def norm(x: Float[Array, "n d"], weights: Weights, name: str) -> Float[Array, "n d"]:
    """Layer normalisation, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + NORM_EPSILON)
    return normed * weights[f"{name}/scale"] + weights[f"{name}/bias"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(dimensions: Dimensions, left: Array, right: Array, dtype: Any = None) -> Array:
    """A matrix product summed up in float32. Its gradients are products of two arrays of one type, as TPUs want it.

    Args:
        dimensions: one of the above.
        left: of the same type as `right`.
        right: see `left`.
        dtype: of the result; None: theirs.
    """
    return _dot(dimensions, left, right, dtype or left.dtype)


def _dot(dimensions: Dimensions, left: Array, right: Array, dtype: Any) -> Array:
    # Both of one type: in float32 all bits count, which TPUs leave out unless told.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    wide = jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)
    return wide.astype(dtype)


def _product_forward(dimensions: Dimensions, left: Array, right: Array, dtype: Any) -> tuple[Array, Any]:
    return product(dimensions, left, right, dtype), (left, right)


def _product_backward(dimensions: Dimensions, dtype: Any, kept: tuple[Array, Array], change: Array) -> Any:
    left, right = kept
    change = change.astype(left.dtype)
    (_, (summed,)), (batch, _) = dimensions
    rows, columns = len(batch), len(batch) + 1  # axes, after that of the maps
    among = (batch, batch)
    if dimensions == SUMMED:
        to_left = _dot(BETWEEN, right, change, left.dtype)
        return to_left, _dot(MIXED, left, change, right.dtype)
    to_left = _dot((((columns,), (rows + columns - summed,)), among), change, right, left.dtype)
    pair = (left, change) if summed == rows else (change, left)
    return to_left, _dot((((rows,), (rows,)), among), *pair, right.dtype)


product.defvjp(_product_forward, _product_backward)
