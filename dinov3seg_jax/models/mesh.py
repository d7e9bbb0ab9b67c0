"""Where activations live: on the device of their example, as far as a mesh is in view."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

DATA = "data"  # the axis of a mesh over which examples are shared out


def divides(batch: int) -> bool:
    """Whether the mesh in view, if there is one, shares so many examples out evenly."""
    return batch % _shares() == 0


def on_one_device(batch: int) -> int:
    """How many of so many examples a device holds, at most."""
    return -(-batch // _shares())


def _shares() -> int:
    return jax.sharding.get_abstract_mesh().shape.get(DATA, 1)


def on_each_device(call: Callable[..., Array], inputs: tuple[P, ...]) -> Callable[..., Array]:
    """`call` on each device's own examples, for kernels, which the compiler cannot cut; or as it is, without a mesh.

    Args:
        call: takes and returns whole trees of arrays, those of examples with the batch first.
        inputs: P(DATA) for what has examples, P() for what is the same everywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.auto_axes:
        return call
    return jax.shard_map(call, mesh=mesh, in_specs=inputs, out_specs=P(DATA), check_vma=False)


def over_batch(x: Float[Array, "b *n"], axis: int = 0) -> Float[Array, "b *n"]:
    """x, each device keeping its own examples and all else of them; x as it is where no mesh with `DATA` is in view.

    Said at the borders of blocks, so that the compiler moves parameters (FSDP) or sums (tensor parallelism) between
    devices and never turns to cutting activations in other ways. A batch that does not divide is filled up.

    Args:
        x: activations.
        axis: which of its axes is the batch.
    """
    if DATA not in jax.sharding.get_abstract_mesh().auto_axes:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, DATA))
