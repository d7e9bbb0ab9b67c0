"""A Swin block of late refinement in one kernel for TPUs: its maps are read once and written once.

Step by step, the block's queries, scores and hidden layer pass through memory, tens of times the bytes of its maps.
Here a few classes' maps of one window are in fast memory while everything is done to them. The backward kernel does the
forward pass again and differentiates it in the same place, so that nothing but the block's input is kept.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from dinov3seg_jax.models.functions import gelu
from dinov3seg_jax.models.kernels import on_tpu
from dinov3seg_jax.models.layers import NORM_EPSILON
from dinov3seg_jax.models.mesh import BY_EXAMPLE, divides, on_each_device

SUBLANES, LANES = 16, 128  # a tile of bfloat16
MAPS = 4  # at once
INTERPRET = False  # True runs the kernels anywhere, slowly: for tests
FAST_MEMORY = 48 * 2**20  # bytes that the kernels may use: v5p has 64 MB a core, v5e and v6e have 128
APART = -1e30  # as a score
PARAMETERS = pltpu.CompilerParams(
    vmem_limit_bytes=FAST_MEMORY, dimension_semantics=("parallel", "arbitrary", "arbitrary")
)

Weights = dict[str, Float[Array, "_ _"]]  # by the names of the block's parameters; vectors as one row
Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]

ROWS: Dimensions = ((1,), (0,)), ((), ())  # x w
BETWEEN: Dimensions = ((2,), (2,)), ((0,), (0,))  # q k', map by map
MIXED: Dimensions = ((2,), (1,)), ((0,), (0,))  # p v, map by map


class Maps(NamedTuple):
    """What a block works on, cut into windows of n cells."""

    x: Float[Array, "b t windows n d"]
    query: Float[Array, "b windows n d"]  # what the guidance adds to the queries of every class
    key: Float[Array, "b windows n d"]


def fits(cells: int, dim: int, batch: int) -> bool:
    """Whether there is a TPU, windows of `cells` positions and `dim` channels fill its tiles, and the batch divides."""
    return (on_tpu() or INTERPRET) and cells % SUBLANES == 0 and dim % LANES == 0 and divides(batch)


def score_bias(
    allowed: Bool[np.ndarray, "windows n n"] | None, shape: tuple[int, ...]
) -> Float[np.ndarray, "windows n n"]:
    """What is added to the scores so that pairs attend to each other that may.

    Args:
        allowed: None admits all pairs.
        shape: (windows, n).
    """
    if allowed is None:
        return np.zeros((*shape, shape[-1]), np.float32)
    return np.where(allowed, 0, APART).astype(np.float32)


def swin_block(weights: Weights, maps: Maps, bias: Float[np.ndarray, "windows n n"], heads: int) -> Array:
    """x + attention(norm1(x)), then that + mlp(norm2(that)), inside windows.

    Each device of a mesh in view has its own examples; gradients of the weights are summed over devices.

    Args:
        weights: of `models.late_refinement.SwinBlock`.
        maps: its input.
        bias: from `score_bias`.
        heads: of the attention.

    Returns:
        The block's output, [b, t, windows, n, d].
    """
    return on_each_device(functools.partial(_block, heads), (P(), BY_EXAMPLE, P()))(weights, maps, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block(heads: int, weights: Weights, maps: Maps, bias: Array) -> Array:
    return run(heads, weights, maps, bias)


def _forward(heads: int, weights: Weights, maps: Maps, bias: Array) -> tuple[Array, tuple[Weights, Maps, Array]]:
    return run(heads, weights, maps, bias), (weights, maps, bias)


def _backward(heads: int, kept: tuple[Weights, Maps, Array], change: Array) -> tuple[Weights, Maps, None]:
    return *run_backward(heads, *kept, change), None


_block.defvjp(_forward, _backward)


def run(heads: int, weights: Weights, maps: Maps, bias: Array) -> Array:
    """The forward kernel."""
    names, classes = list(weights), maps.x.shape[1]

    def body(x: Any, query: Any, key: Any, bias: Any, *others: Any) -> None:
        *held, out = others
        out[...] = _window(heads, _read(names, held), x[...], query[...], key[...], bias[...])

    maps = _fill(maps)
    grid = _Grid(maps, weights)
    return pl.pallas_call(
        body,
        grid=grid.steps,
        in_specs=[grid.maps, grid.guidance, grid.guidance, grid.bias, *grid.weights],
        out_specs=grid.maps,
        out_shape=jax.ShapeDtypeStruct(maps.x.shape, maps.x.dtype),
        compiler_params=PARAMETERS,
        cost_estimate=_cost(heads, weights, maps, 1),
        interpret=INTERPRET,
    )(*maps, bias, *weights.values())[:, :classes]


def run_backward(heads: int, weights: Weights, maps: Maps, bias: Array, change: Array) -> tuple[Weights, Maps]:
    """The backward kernel: what `change` of the block's output says of weights and maps."""
    names, classes = list(weights), maps.x.shape[1]

    def body(x: Any, query: Any, key: Any, bias: Any, change: Any, *others: Any) -> None:
        held, sums = others[: len(names)], others[len(names) + 1 :]
        out = others[len(names)]
        window = functools.partial(_window, heads, bias=bias[...])
        _, pull = jax.vjp(window, _read(names, held), x[...], query[...], key[...])
        changes, out[...], *guided = pull(change[...])
        first = pl.program_id(2) == 0  # of an example's steps, which sum up what all classes say of the guidance
        _add(sums[:2], guided, first)
        _add(sums[2:], changes.values(), first & (pl.program_id(1) == 0))

    maps, (change, *_) = _fill(maps), _fill(Maps(change, maps.query, maps.key))
    grid = _Grid(maps, weights)
    windows = maps.x.shape[2]
    shapes = [maps.query.shape, maps.key.shape, *((windows, *array.shape) for array in weights.values())]
    wide = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    x, query, key, *changes = pl.pallas_call(
        body,
        grid=grid.steps,
        in_specs=[grid.maps, grid.guidance, grid.guidance, grid.bias, grid.maps, *grid.weights],
        out_specs=[grid.maps, grid.guidance, grid.guidance, *grid.sums],
        out_shape=[jax.ShapeDtypeStruct(maps.x.shape, maps.x.dtype), *wide],
        compiler_params=PARAMETERS,
        cost_estimate=_cost(heads, weights, maps, 3),
        interpret=INTERPRET,
    )(*maps, bias, change, *weights.values())
    guided = (query.astype(maps.query.dtype), key.astype(maps.key.dtype))
    sums = (change.sum(axis=0) for change in changes)
    return dict(zip(names, sums, strict=True)), Maps(x[:, :classes], *guided)


class _Grid:
    """The steps of a kernel, classes innermost, and which part of each array a step sees.

    Windows are shared out over the cores of a chip that has two, and so each has sums of its own.
    """

    def __init__(self, maps: Maps, weights: Weights):
        b, t, windows, n, d = maps.x.shape
        self.steps = (windows, b, t // MAPS)
        self.maps = pl.BlockSpec((None, MAPS, None, n, d), lambda window, b, t: (b, t, window, 0, 0))
        self.guidance = pl.BlockSpec((None, None, n, d), lambda window, b, t: (b, window, 0, 0))
        self.bias = pl.BlockSpec((None, n, n), lambda window, b, t: (window, 0, 0))
        self.weights = [pl.BlockSpec(array.shape, lambda *_: (0, 0)) for array in weights.values()]
        self.sums = [
            pl.BlockSpec((None, *array.shape), lambda window, b, t: (window, 0, 0)) for array in weights.values()
        ]


def _cost(heads: int, weights: Weights, maps: Maps, passes: int) -> pl.CostEstimate:
    """What a kernel computes and moves, for the compiler and for `costs`; the backward one is three passes."""
    b, t, windows, n, d = maps.x.shape
    matrices = [array for name, array in weights.items() if name.endswith("/kernel")]
    hidden = weights["ffn/up/kernel"].shape[1]
    of_a_map = 2 * n * sum(array.size for array in matrices) + heads * 4 * n * n * d
    of_a_map_rest = heads * n * n + n * hidden
    count = b * t * windows
    return pl.CostEstimate(
        flops=passes * count * of_a_map,
        transcendentals=min(passes, 2) * count * of_a_map_rest,
        bytes_accessed=(2 if passes == 1 else 3) * maps.x.size * maps.x.dtype.itemsize,
    )


def _fill(maps: Maps) -> Maps:
    """With maps of zeros up to whole steps; as no change comes back to them, they add nothing to any sum."""
    missing = -maps.x.shape[1] % MAPS
    return maps._replace(x=jnp.pad(maps.x, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))))


def _read(names: list[str], held: Any) -> Weights:
    return {name: reference[...] for name, reference in zip(names, held, strict=True)}


def _add(sums: Any, terms: Any, first: Array) -> None:
    @pl.when(first)
    def _() -> None:
        for total in sums:
            total[...] = jnp.zeros_like(total)

    for total, term in zip(sums, terms, strict=True):
        total[...] += term.astype(total.dtype)


def _window(
    heads: int,
    weights: Weights,
    x: Float[Array, "t n d"],
    query: Float[Array, "n d"],
    key: Float[Array, "n d"],
    bias: Float[Array, "n n"],
) -> Float[Array, "t n d"]:
    """The block on one window of some classes."""
    t, n, d = x.shape

    def dense(x: Array, name: str) -> Array:
        kernel, offset = weights[f"{name}/kernel"], weights[f"{name}/bias"]
        return _product(ROWS, x, kernel.astype(x.dtype)) + offset.astype(x.dtype)

    rows = x.reshape(t * n, d)
    normed = _norm(rows, weights, "norm1")
    queries = dense(normed, "attention/query").reshape(x.shape) + query
    keys = dense(normed, "attention/key").reshape(x.shape) + key
    values = dense(normed, "attention/value").reshape(x.shape)
    # Heads are told apart by zeros, not by slices: a slice of 32 channels fills the matrix unit no better.
    channels = jax.lax.broadcasted_iota(jnp.int32, (1, 1, d), 2) // (d // heads)
    mixed = jnp.zeros(x.shape, jnp.float32)
    for head in range(heads):
        own = (channels == head).astype(x.dtype)
        scores = _product(BETWEEN, queries * own, keys, jnp.float32) * (d // heads) ** -0.5 + bias
        exponential = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        shares = exponential / exponential.sum(axis=-1, keepdims=True)
        mixed += _product(MIXED, shares.astype(x.dtype), values * own, jnp.float32)
    rows += dense(mixed.astype(x.dtype).reshape(t * n, d), "attention/out")
    rows += dense(gelu(dense(_norm(rows, weights, "norm2"), "ffn/up")), "ffn/down")
    return rows.reshape(x.shape)


def _norm(x: Float[Array, "n d"], weights: Weights, name: str) -> Float[Array, "n d"]:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + NORM_EPSILON)
    return (normed * weights[f"{name}/scale"] + weights[f"{name}/bias"]).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _product(dimensions: Dimensions, left: Array, right: Array, dtype: Any = None) -> Array:
    """A matrix product summed up in float32. Its gradients are products of two arrays of one type, as TPUs want it."""
    return _dot(dimensions, left, right, dtype or left.dtype)


def _dot(dimensions: Dimensions, left: Array, right: Array, dtype: Any) -> Array:
    # Both of one type: in float32 all bits count, which TPUs leave out unless told.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    wide = jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)
    return wide.astype(dtype)


def _product_forward(dimensions: Dimensions, left: Array, right: Array, dtype: Any) -> tuple[Array, Any]:
    return _product(dimensions, left, right, dtype), (left, right)


def _product_backward(dimensions: Dimensions, dtype: Any, kept: tuple[Array, Array], change: Array) -> Any:
    left, right = kept
    change = change.astype(left.dtype)
    (_, (summed,)), (batch, _) = dimensions
    rows, columns = len(batch), len(batch) + 1  # axes, after that of the maps
    among = (batch, batch)
    to_left = _dot((((columns,), (rows + columns - summed,)), among), change, right, left.dtype)
    pair = (left, change) if summed == rows else (change, left)
    return to_left, _dot((((rows,), (rows,)), among), *pair, right.dtype)


_product.defvjp(_product_forward, _product_backward)
