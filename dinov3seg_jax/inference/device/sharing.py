"""Several devices share pictures out: each runs the same program on its own ones, and none waits for others.

So a picture's result depends neither on the number of devices nor on the pictures that others work on. Where there are
fewer pictures than devices, some devices have the same picture and share its class list out; what they tell each other
is added up in the order of the list, as one device does.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PICTURES = "pictures"


def make_mesh(devices: Sequence[jax.Device]) -> Mesh | None:
    """The devices that share batches out; None where there is nothing to share."""
    return Mesh(np.asarray(devices), (PICTURES,)) if len(devices) > 1 else None


def shared_out(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is pictures: each device holds its own ones."""
    return NamedSharding(mesh, P(PICTURES))


def on_every_device(mesh: Mesh) -> NamedSharding:
    """Arrays that every device holds as a whole."""
    return NamedSharding(mesh, P())


def copies_of(pictures: int, devices: int) -> int:
    """How many devices share the class list of each picture, where so many pictures are worked on at a time."""
    return devices // next(n for n in range(min(pictures, devices), devices + 1) if devices % n == 0)


def add_up(total: Any, own: Any, copies: int, devices: int) -> Any:
    """The total, and what devices with copies of a picture add to it: one after the other, as one device would.

    Args:
        total, own: trees of arrays; for use below `on_own_pictures`.
        copies: how many devices, one after the other in the mesh, have the same picture.
        devices: of the mesh.
    """
    groups = [list(range(first, first + copies)) for first in range(0, devices, copies)]
    parts = jax.lax.all_gather(own, PICTURES, axis_index_groups=groups)
    return functools.reduce(
        lambda total, place: jax.tree.map(lambda sum, part: sum + part[place], total, parts), range(copies), total
    )


def whole_on(devices: Sequence[jax.Device], arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Arrays as every one of a process's devices holds them, for its own programs.

    What lies there as a whole already, such as small parameters while a run trains, shares its memory. What is cut
    over devices, which may be those of other processes, is gathered; these call this together.

    Args:
        devices: all of this process.
        arrays: of one training mesh.
    """
    cut = {name: array for name, array in arrays.items() if not array.is_fully_replicated}
    if cut:
        mesh = next(array.sharding.mesh for array in arrays.values() if isinstance(array.sharding, NamedSharding))
        arrays = {**arrays, **_gathering(mesh)(cut)}
    own = make_mesh(devices)

    def here(array: jax.Array) -> jax.Array:
        held = {shard.device: shard.data for shard in array.addressable_shards}
        parts = [held[device] for device in devices]
        if own is None:
            return parts[0]
        return jax.make_array_from_single_device_arrays(array.shape, on_every_device(own), parts)

    return {name: here(array) for name, array in arrays.items()}


@functools.cache
def _gathering(mesh: Mesh) -> Any:
    """A program that puts arrays whole on every device of a mesh."""
    return jax.jit(lambda arrays: arrays, out_shardings=NamedSharding(mesh, P()))


def on_own_pictures(mesh: Mesh | None, common: tuple[str, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let each device run a function on its own pictures; for use below `jax.jit`.

    Args:
        mesh: of `make_mesh`; None leaves the function as it is.
        common: names of the arguments that are the same for all pictures. The first axis of the arrays in all other
            arguments, and in the result, is pictures, or a number of things for each picture. Keywords are static.

    Raises:
        ValueError: the function has no such argument.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if mesh is None:
            return function

        names = list(inspect.signature(function).parameters)
        if unknown := set(common) - set(names):
            raise ValueError(f"{function.__qualname__} has no argument {min(unknown)}")

        @functools.wraps(function)
        def run(*arguments: Any, **static: Any) -> Any:
            specs = tuple(P() if name in common else P(PICTURES) for name, _ in zip(names, arguments, strict=False))
            own = functools.partial(function, **static)
            shared = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=P(PICTURES), check_vma=False)
            return shared(*arguments)

        return run

    return decorate
