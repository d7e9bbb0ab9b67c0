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
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from dinov3seg_jax.models import kernel_parts
from dinov3seg_jax.models.functions import gelu
from dinov3seg_jax.models.kernel_parts import (
    BETWEEN,
    LANES,
    MIXED,
    PARAMETERS,
    ROWS,
    SUBLANES,
    Weights,
    add,
    begin,
    matrices,
    norm,
    product,
    read,
)
from dinov3seg_jax.models.mesh import BY_EXAMPLE, on_each_device

MAPS = 4  # at once
APART = -1e30  # as a score


class Maps(NamedTuple):
    """What a block works on, cut into windows of n cells."""

    x: Float[Array, "b t windows n d"]
    query: Float[Array, "b windows n d"]  # what the guidance adds to the queries of every class
    key: Float[Array, "b windows n d"]


def fits(cells: int, dim: int, batch: int) -> bool:
    """Whether there is a TPU, windows of `cells` positions and `dim` channels fill its tiles, and the batch divides."""
    return cells % SUBLANES == 0 and dim % LANES == 0 and kernel_parts.available(batch)


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
        out[...] = _window(heads, read(names, held), x[...], query[...], key[...], bias[...])

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
        interpret=kernel_parts.INTERPRET,
    )(*maps, bias, *weights.values())[:, :classes]


def run_backward(heads: int, weights: Weights, maps: Maps, bias: Array, change: Array) -> tuple[Weights, Maps]:
    """The backward kernel: what `change` of the block's output says of weights and maps."""
    names, classes = list(weights), maps.x.shape[1]

    def body(x: Any, query: Any, key: Any, bias: Any, change: Any, *others: Any) -> None:
        held, sums = others[: len(names)], others[len(names) + 1 :]
        out = others[len(names)]
        window = functools.partial(_window, heads, bias=bias[...])
        _, pull = jax.vjp(window, read(names, held), x[...], query[...], key[...])
        changes, out[...], *guided = pull(change[...])
        first = pl.program_id(2) == 0  # of an example's steps, which sum up what all classes say of the guidance
        begin(sums[:2], first)
        begin(sums[2:], first & (pl.program_id(1) == 0))
        add(sums, [*guided, *changes.values()])

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
        interpret=kernel_parts.INTERPRET,
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
    b, t, windows, n, d = maps.x.shape
    of_a_map = 2 * n * matrices(weights) + heads * 4 * n * n * d
    of_a_map_rest = heads * n * n + n * weights["ffn/up/kernel"].shape[1]
    count = b * t * windows
    return kernel_parts.cost(maps.x, passes, count * of_a_map, count * of_a_map_rest)


def _fill(maps: Maps) -> Maps:
    """With maps of zeros up to whole steps; as no change comes back to them, they add nothing to any sum."""
    missing = -maps.x.shape[1] % MAPS
    return maps._replace(x=jnp.pad(maps.x, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))))


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
        return product(ROWS, x, kernel.astype(x.dtype)) + offset.astype(x.dtype)

    rows = x.reshape(t * n, d)
    normed = norm(rows, weights, "norm1").astype(x.dtype)
    queries = dense(normed, "attention/query").reshape(x.shape) + query
    keys = dense(normed, "attention/key").reshape(x.shape) + key
    values = dense(normed, "attention/value").reshape(x.shape)
    # Heads are told apart by zeros, not by slices: a slice of 32 channels fills the matrix unit no better.
    channels = jax.lax.broadcasted_iota(jnp.int32, (1, 1, d), 2) // (d // heads)
    mixed = jnp.zeros(x.shape, jnp.float32)
    for head in range(heads):
        own = (channels == head).astype(x.dtype)
        scores = product(BETWEEN, queries * own, keys, jnp.float32) * (d // heads) ** -0.5 + bias
        exponential = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        shares = exponential / exponential.sum(axis=-1, keepdims=True)
        mixed += product(MIXED, shares.astype(x.dtype), values * own, jnp.float32)
    rows += dense(mixed.astype(x.dtype).reshape(t * n, d), "attention/out")
    rows += dense(gelu(dense(norm(rows, weights, "norm2").astype(x.dtype), "ffn/up")), "ffn/down")
    return rows.reshape(x.shape)
