"""Where arrays live: a mesh of (replica, data, model) axes and a table from parameter names to partitions.

Examples are shared out over the first two, large parameters are cut over the second alone, and the third shares out the
work on each example: the matrices of the towers, and the class list behind them (see `models.mesh`).
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.mesh import BY_EXAMPLE, DATA, EXAMPLES, MODEL, REPLICA
from dinov3seg_jax.models.parameters import AbstractParameters

AXES = (*EXAMPLES, MODEL)
ALL_AUTO = (AxisType.Auto,) * len(AXES)
AnyMesh = Mesh | AbstractMesh  # of devices, or of so many that need not be there
FSDP_BYTES = Config.fsdp_bytes  # parameters larger than this are cut over the data axis too

# Tensor parallelism, by the last two axes of a kernel: the first dense layer of a pair is cut by its outputs, the
# second by its inputs, so that only the pair's result is summed over devices. What no row matches is replicated. Late
# refinement, which has a device's own classes, needs its matrices whole.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"late/.*", ()),
    (r".*/attention/(query|key|value)/kernel", (None, MODEL)),
    (r".*/attention/out/kernel", (MODEL, None)),
    (r".*/ffn/(up|gate)/kernel", (None, MODEL)),
    (r".*/ffn/down/kernel", (MODEL, None)),
    (r"text/token_embedding", (MODEL, None)),
)
STACKED = r".*blocks/.*"  # parameters whose first axis is depth, which a scan walks along: it is never cut


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None, replicas: int = 0) -> Mesh:
    """Arrange devices as (replica, data, model).

    Where they are several slices, joined by a slower network, the model axis is inside a slice, and by default the data
    axis too: what crosses the network is then the sum of a step's gradients, and neither the parameters that are
    gathered for each block nor the sums within it.

    Args:
        data: devices that share examples out, of all replicas; -1 takes what the model axis leaves.
        model: devices that share one example's work.
        devices: default all, of all processes.
        replicas: how many times all parameters are held; 0: once in each slice.

    Raises:
        UserError: the product is not the number of devices, or the axes do not fit the slices.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, model = examples_and_model(data, model, len(devices))
    if data % slices:
        raise UserError(
            f"model_parallel {model} does not fit into one of the {slices} slices of {len(devices) // slices} devices; "
            "set a --config.model_parallel that divides a slice."
        )
    axes = axes_of(data, model, replicas or slices)
    if slices == 1:
        return jax.make_mesh(axes, AXES, axis_types=ALL_AUTO, devices=devices)
    arranged = create_hybrid_device_mesh((data // slices, model), (slices, 1), devices)
    return Mesh(arranged.reshape(axes), AXES, ALL_AUTO)


def described_mesh(data: int, model: int, count: int, replicas: int = 0) -> AbstractMesh:
    """The mesh of one slice of `count` devices, which need not be there; see `make_mesh`."""
    return AbstractMesh(axes_of(*examples_and_model(data, model, count), replicas or 1), AXES, axis_types=ALL_AUTO)


def examples_and_model(data: int, model: int, count: int) -> tuple[int, int]:
    """How many of `count` devices share examples out, and how many the work on each; see `make_mesh`.

    Raises:
        UserError: the product is not the number of devices.
    """
    data = count // model if data == -1 else data
    if data * model != count:
        raise UserError(
            f"{data} x {model} devices were asked for and there are {count}; "
            "set --config.data_parallel=-1 and a --config.model_parallel that divides them."
        )
    return data, model


def axes_of(data: int, model: int, replicas: int) -> tuple[int, int, int]:
    """Lengths of the three axes; see `make_mesh`.

    Raises:
        UserError: the replicas do not share the devices out evenly.
    """
    if data % replicas:
        raise UserError(
            f"replicas {replicas} cannot share out the {data} devices of the data axis evenly; "
            "set --config.replicas=0 for one in each slice, or a number that divides them."
        )
    return replicas, data // replicas, model


def example_shares(mesh: AnyMesh) -> int:
    """Among how many devices, or groups of devices, a batch is shared out."""
    return mesh.shape[REPLICA] * mesh.shape[DATA]


def data_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which part of every batch a process reads: (its number, how many parts there are).

    Processes along the replica and data axes read a part each; those that a wide model axis joins read the same one.

    Args:
        mesh: of all processes' devices.
        process: default this one.

    Raises:
        UserError: the processes' devices lie across one another in the mesh.
    """
    rows: dict[int, set[int]] = defaultdict(set)
    by_example = mesh.devices.reshape(example_shares(mesh), -1)
    for (row, _), device in np.ndenumerate(by_example):
        rows[device.process_index].add(row)
    parts = sorted({tuple(sorted(own)) for own in rows.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != len(by_example):
        raise UserError(
            f"model_parallel {mesh.shape[MODEL]} shares hosts out unevenly; "
            "set a --config.model_parallel that divides the devices of a host, or is a multiple of them."
        )
    return parts.index(tuple(sorted(rows[jax.process_index() if process is None else process]))), len(parts)


def on_mesh(function: Callable[..., Any], mesh: AnyMesh) -> Callable[..., Any]:
    """`function`, traced with the mesh in view, so that `mesh.over_batch` keeps activations where examples are."""
    if mesh.size == 1:
        return function

    @functools.wraps(function)
    def in_view(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return in_view


def parameter_spec(name: str, shape: tuple[int, ...], itemsize: int, mesh: AnyMesh, fsdp_bytes: int = FSDP_BYTES) -> P:
    """The partition of one parameter: its row of the table, then the largest free axis over data if it is large."""
    axes: list[str | None] = [None] * len(shape)
    for pattern, last_axes in RULES:
        if re.fullmatch(pattern, name):
            for axis, mesh_axis in enumerate(last_axes, start=len(shape) - 2):
                if mesh_axis and mesh.shape[mesh_axis] > 1 and shape[axis] % mesh.shape[mesh_axis] == 0:
                    axes[axis] = mesh_axis
            break
    if mesh.shape[DATA] > 1 and np.prod(shape) * itemsize > fsdp_bytes:
        first = 1 if re.fullmatch(STACKED, name) else 0
        free = [i for i in range(first, len(shape)) if axes[i] is None and shape[i] % mesh.shape[DATA] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = DATA
    return P(*axes)


def parameter_shardings(
    parameters: AbstractParameters, mesh: AnyMesh, fsdp_bytes: int = FSDP_BYTES
) -> dict[str, NamedSharding]:
    """One sharding per parameter."""
    return {
        name: NamedSharding(mesh, parameter_spec(name, leaf.shape, np.dtype(leaf.dtype).itemsize, mesh, fsdp_bytes))
        for name, leaf in parameters.items()
    }


def like_parameters(tree: Any, shardings: dict[str, NamedSharding], mesh: AnyMesh) -> Any:
    """Shardings for a tree that holds dicts by parameter name (optimiser moments) beside other leaves (counts)."""

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = next((key.key for key in reversed(path) if getattr(key, "key", None) in shardings), None)
        return shardings[name] if name is not None and leaf.ndim else NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(of, tree)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Examples over the replica and data axes."""
    return NamedSharding(mesh, BY_EXAMPLE)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())
