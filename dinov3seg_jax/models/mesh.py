"""Where activations live: on the devices of their example and, behind the correlation, of their class.

A mesh has three axes: `REPLICA` and `DATA` share examples out, `MODEL` shares out the work on each of them.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

REPLICA = "replica"  # the axis along which parameters are the same
DATA = "data"  # along which large ones are cut
MODEL = "model"  # along which the towers' matrices are cut, and behind them the class list
EXAMPLES = (REPLICA, DATA)
BY_EXAMPLE = P(EXAMPLES)
BY_CLASS = P(EXAMPLES, MODEL)  # of arrays [b, t, ...]

Sums = TypeVar("Sums")  # an array, or several


def divides(batch: int) -> bool:
    """Whether the mesh in view, if there is one, shares so many examples out evenly."""
    return batch % _shares(EXAMPLES) == 0


def on_one_device(batch: int) -> int:
    """How many of so many examples a device holds, at most."""
    return -(-batch // _shares(EXAMPLES))


def shares_classes() -> bool:
    """Whether the mesh in view has several devices for each example."""
    return _shares((MODEL,)) > 1


def _shares(axes: tuple[str, ...]) -> int:
    mesh, shares = jax.sharding.get_abstract_mesh(), 1
    for axis in axes:
        shares *= mesh.shape[axis] if axis in mesh.auto_axes else 1
    return shares


def on_each_device(call: Callable[..., Array], inputs: tuple[P, ...], output: P = BY_EXAMPLE) -> Callable[..., Array]:
    """`call` on what each device holds of its arguments; or as it is, without a mesh.

    For kernels, which the compiler cannot cut, and for work that needs no other device's part but by `sum_classes` and
    `gather_classes`.

    Args:
        call: takes and returns whole trees of arrays, those of examples with the batch first.
        inputs: `BY_EXAMPLE`, `BY_CLASS`, or P() for what is the same everywhere. The axes have to divide.
        output: the same of what it returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.auto_axes:
        return call
    return jax.shard_map(call, mesh=mesh, in_specs=inputs, out_specs=output, check_vma=False)


def fill_classes(x: Float[Array, "b t *n"]) -> Float[Array, "b t2 *n"]:
    """x with zeros up to a number of classes that the devices of an example share out evenly."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % _shares((MODEL,))), *[(0, 0)] * (x.ndim - 2)])


def sum_classes(x: Sums) -> Sums:
    """Arrays' sums over the devices that share the class list, where `on_each_device` runs on their parts; else x."""
    return jax.lax.psum(x, MODEL) if runs_apart() else x


def gather_classes(x: Float[Array, "b t *n"]) -> Float[Array, "b t2 *n"]:
    """Of all classes, what each device that shares the list has of its own, where they run apart; else x."""
    return jax.lax.all_gather(x, MODEL, axis=1, tiled=True) if runs_apart() else x


def first_class(classes: int) -> int | Int[Array, ""]:
    """The place in the list of the first of the classes that a device has, each having so many; 0 where none shares."""
    return jax.lax.axis_index(MODEL) * classes if runs_apart() else 0


def runs_apart() -> bool:
    """Whether what is being traced is one device's part of a class list that several share."""
    mesh = jax.sharding.get_abstract_mesh()
    return MODEL in mesh.manual_axes and mesh.shape[MODEL] > 1


def over_batch(x: Float[Array, "b *n"], axis: int = 0) -> Float[Array, "b *n"]:
    """x, each device keeping its own examples and all else of them; x as it is where no mesh is in view.

    Said at the borders of blocks, so that the compiler moves parameters (FSDP) or sums (tensor parallelism) between
    devices and never turns to cutting activations in other ways. A batch that does not divide is filled up.

    Args:
        x: activations.
        axis: which of its axes is the batch.
    """
    if DATA not in jax.sharding.get_abstract_mesh().auto_axes:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, EXAMPLES))
