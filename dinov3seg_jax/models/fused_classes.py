"""A class block of late refinement in one kernel for TPUs: its maps are read once and written once.

Step by step, the block's keys, queries and hidden layer pass through memory, and so do its maps, turned so that the
classes of a position lie together. Here all classes of a few positions are in fast memory, and are turned there. The
backward kernel does the forward pass again and differentiates it in the same place, so that nothing but the block's
input is kept.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from dinov3seg_jax.models import kernel_parts
from dinov3seg_jax.models.attention import LINEAR_ATTENTION_EPSILON
from dinov3seg_jax.models.kernel_parts import (
    LANES,
    MIXED,
    PARAMETERS,
    ROWS,
    SUBLANES,
    SUMMED,
    Weights,
    add,
    begin,
    matrices,
    norm,
    product,
    read,
)
from dinov3seg_jax.models.mesh import BY_EXAMPLE, on_each_device

POSITIONS = SUBLANES  # at once in fast memory
CORES = 2  # that share the positions out, on a chip that has two
ROWS_AT_ONCE = 768  # classes of some positions, of which all that lies between is in fast memory
LIST = 1696  # bytes of a channel of one position, all classes, at most: 848 classes in bfloat16


class Maps(NamedTuple):
    """What a block works on."""

    x: Float[Array, "b t n d"]  # n positions
    query: Float[Array, "b t d"]  # what the guidance adds to the queries of all positions
    key: Float[Array, "b t d"]
    present: Float[Array, "b t d"]  # 0 or 1: classes that only fill the list count for nothing


def fits(x: Float[Array, "b t h w d"]) -> bool:
    """Whether there is a TPU, a tile holds the channels, and its fast memory all classes of some positions."""
    batch, classes, *_, dim = x.shape
    return dim == LANES and classes * x.dtype.itemsize <= LIST and kernel_parts.available(batch)


def presence(class_mask: Bool[Array, "b t"] | None, like: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """`Maps.present`; without a mask, all are."""
    return jnp.ones_like(like) if class_mask is None else jnp.ones_like(like) * class_mask[..., None]


def class_block(weights: Weights, maps: Maps, heads: int) -> Float[Array, "b t n d"]:
    """x + attention(norm1(x)), then that + mlp(norm2(that)), among the classes of each position.

    Each device of a mesh in view has its own examples; gradients of the weights are summed over devices.

    Args:
        weights: of `models.late_refinement.ClassRefinementBlock`.
        maps: its input.
        heads: of the attention.
    """
    return on_each_device(functools.partial(_block, heads), (P(), BY_EXAMPLE))(weights, maps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block(heads: int, weights: Weights, maps: Maps) -> Array:
    return run(heads, weights, maps)


def _forward(heads: int, weights: Weights, maps: Maps) -> tuple[Array, tuple[Weights, Maps]]:
    return run(heads, weights, maps), (weights, maps)


def _backward(heads: int, kept: tuple[Weights, Maps], change: Array) -> tuple[Weights, Maps]:
    return run_backward(heads, *kept, change)


_block.defvjp(_forward, _backward)


def run(heads: int, weights: Weights, maps: Maps) -> Array:
    """The forward kernel."""
    names, (_, _, positions, _) = list(weights), maps.x.shape

    def body(x: Any, query: Any, key: Any, present: Any, *others: Any) -> None:
        *held, out, inputs, outputs = others
        inputs[...] = _by_position(x[...], inputs.shape[1])

        def some(at: Any) -> None:
            outputs[at] = _attend(heads, read(names, held), inputs[at], query[...], key[...], present[...])

        _in_parts(inputs.shape, some)
        out[...] = _by_class(outputs[...], out.shape[0])

    maps = _fill(maps)
    grid = _Grid(maps, weights)
    return pl.pallas_call(
        body,
        grid=grid.steps,
        in_specs=[grid.maps, *grid.guidance, *grid.weights],
        out_specs=grid.maps,
        out_shape=jax.ShapeDtypeStruct(maps.x.shape, maps.x.dtype),
        scratch_shapes=[grid.turned] * 2,
        compiler_params=PARAMETERS,
        cost_estimate=_cost(weights, maps, 1),
        interpret=kernel_parts.INTERPRET,
    )(*maps, *weights.values())[:, :, :positions]


def run_backward(heads: int, weights: Weights, maps: Maps, change: Array) -> tuple[Weights, Maps]:
    """The backward kernel: what `change` of the block's output says of weights and maps."""
    names, (_, classes, positions, _) = list(weights), maps.x.shape

    def body(x: Any, query: Any, key: Any, present: Any, change: Any, *others: Any) -> None:
        held, (out, *sums) = others[: len(names)], others[len(names) : -3]
        inputs, changes, outputs = others[-3:]
        first = pl.program_id(2) == 0  # of an example's steps, which sum up what all positions say of the guidance
        begin(sums[:2], first)
        begin(sums[2:], first & (pl.program_id(1) == 0))
        inputs[...] = _by_position(x[...], inputs.shape[1])
        changes[...] = _by_position(change[...], inputs.shape[1])

        def some(at: Any) -> None:
            attend = functools.partial(_attend, heads, present=present[...])
            _, pull = jax.vjp(attend, read(names, held), inputs[at], query[...], key[...])
            of_weights, outputs[at], *guided = pull(changes[at])
            add(sums, [*guided, *of_weights.values()])

        _in_parts(inputs.shape, some)
        out[...] = _by_class(outputs[...], out.shape[0])

    shapes = [array.shape for array in weights.values()]
    filled, (change, *_) = _fill(maps), _fill(maps._replace(x=change))
    grid = _Grid(filled, weights)
    wide = [jax.ShapeDtypeStruct((CORES, *shape), jnp.float32) for shape in [*[filled.query.shape] * 2, *shapes]]
    x, *sums = pl.pallas_call(
        body,
        grid=grid.steps,
        in_specs=[grid.maps, *grid.guidance, grid.maps, *grid.weights],
        out_specs=[grid.maps, *grid.sums],
        out_shape=[jax.ShapeDtypeStruct(filled.x.shape, filled.x.dtype), *wide],
        scratch_shapes=[grid.turned] * 3,
        compiler_params=PARAMETERS,
        cost_estimate=_cost(weights, filled, 3),
        interpret=kernel_parts.INTERPRET,
    )(*filled, change, *weights.values())
    query, key, *changes = (part.sum(axis=0) for part in sums)
    query, key = (part[:, :classes].astype(maps.query.dtype) for part in (query, key))
    return dict(zip(names, changes, strict=True)), Maps(x[:, :, :positions], query, key, jnp.zeros_like(maps.present))


class _Grid:
    """The steps of a kernel and which part of each array a step sees.

    Positions are shared out over the cores of a chip that has two, and so each has sums of its own.
    """

    def __init__(self, maps: Maps, weights: Weights):
        b, t, n, d = maps.x.shape
        filled = maps.query.shape[1]
        per_core = n // (POSITIONS * CORES)
        self.steps = (CORES, b, per_core)
        self.maps = pl.BlockSpec((None, t, POSITIONS, d), lambda core, b, step: (b, 0, core * per_core + step, 0))
        self.guidance = [pl.BlockSpec((None, filled, d), lambda core, b, step: (b, 0, 0))] * 3
        self.weights = [pl.BlockSpec(array.shape, lambda *_: (0, 0)) for array in weights.values()]
        self.sums = [
            *[pl.BlockSpec((None, None, filled, d), lambda core, b, step: (core, b, 0, 0))] * 2,
            *(pl.BlockSpec((None, *array.shape), lambda core, b, step: (core, 0, 0)) for array in weights.values()),
        ]
        self.turned = pltpu.VMEM((POSITIONS, filled, d), maps.x.dtype)


def _cost(weights: Weights, maps: Maps, passes: int) -> pl.CostEstimate:
    b, _, n, d = maps.x.shape
    rows = b * n * maps.query.shape[1]
    return kernel_parts.cost(maps.x, passes, rows * 2 * (matrices(weights) + 3 * d * d), rows * 3 * d)


def _fill(maps: Maps) -> Maps:
    """With positions of zeros up to whole steps of each core, and guidance of absent classes up to whole tiles."""
    _, t, n, _ = maps.x.shape
    classes, positions = -t % SUBLANES, -n % (POSITIONS * CORES)
    x = jnp.pad(maps.x, ((0, 0), (0, 0), (0, positions), (0, 0)))
    return Maps(x, *(jnp.pad(part, ((0, 0), (0, classes), (0, 0))) for part in maps[1:]))


def _by_position(x: Float[Array, "t p d"], classes: int) -> Float[Array, "p t2 d"]:
    """Turned, with classes of zeros up to so many."""
    t, p, d = x.shape
    if t < classes:
        x = jnp.concatenate([x, jnp.zeros((classes - t, p, d), x.dtype)])
    return jnp.swapaxes(x, 0, 1)


def _by_class(x: Float[Array, "p t2 d"], classes: int) -> Float[Array, "t p d"]:
    return jnp.swapaxes(x, 0, 1)[:classes]


def _in_parts(shape: tuple[int, int, int], some: Any) -> None:
    """Call `some` on parts of the positions, which are the first axis of the shape."""
    positions, classes = shape[:2]
    at_once = next(n for n in range(positions, 0, -1) if positions % n == 0 and (n * classes <= ROWS_AT_ONCE or n == 1))

    @pl.loop(0, positions // at_once)
    def _(part: Any) -> None:
        some(pl.ds(part * at_once, at_once))


def _attend(
    heads: int,
    weights: Weights,
    x: Float[Array, "p t d"],
    query: Float[Array, "t d"],
    key: Float[Array, "t d"],
    present: Float[Array, "t d"],
) -> Float[Array, "p t d"]:
    """The block on all classes of some positions."""
    p, t, d = x.shape

    def dense(x: Array, name: str) -> Array:
        return product(ROWS, x, weights[f"{name}/kernel"].astype(x.dtype), jnp.float32) + weights[f"{name}/bias"]

    rows = x.reshape(p * t, d).astype(jnp.float32)
    normed = norm(rows, weights, "norm1").astype(x.dtype)
    queries = _positive(dense(normed, "attention/query").reshape(x.shape) + query)
    keys = _positive(dense(normed, "attention/key").reshape(x.shape) + key) * present
    values = dense(normed, "attention/value").reshape(x.shape).astype(x.dtype)
    # Heads are told apart by zeros, not by slices: a slice of 32 channels fills the matrix unit no better.
    channels = (jax.lax.broadcasted_iota(jnp.int32, (d, d), axis) // (d // heads) for axis in (0, 1))
    same_head = jnp.equal(*channels).astype(jnp.float32)
    products = product(SUMMED, keys.astype(x.dtype), values, jnp.float32) * same_head
    numerator = product(MIXED, queries.astype(x.dtype), products.astype(x.dtype), jnp.float32)
    parts = (queries * keys.sum(axis=1, keepdims=True)).astype(x.dtype)
    denominator = product(ROWS, parts.reshape(p * t, d), same_head.astype(x.dtype), jnp.float32)
    rows += numerator.reshape(p * t, d) / (denominator + LINEAR_ATTENTION_EPSILON)
    hidden = jax.nn.relu(dense(norm(rows, weights, "norm2").astype(x.dtype), "ffn/up"))
    rows += dense(hidden.astype(x.dtype), "ffn/down")
    return rows.reshape(x.shape).astype(x.dtype)


@jax.custom_jvp
def _positive(x: Array) -> Array:
    """elu + 1."""
    return jnp.where(x > 0, x + 1, jnp.exp(x))


@_positive.defjvp
def _positive_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (change,) = primals, tangents
    out = _positive(x)
    return out, change * jnp.minimum(out, 1)
