"""Where arrays live: a mesh of (data, model) axes and a table from parameter names to partitions."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.parameters import AbstractParameters

DATA, MODEL = "data", "model"
FSDP_BYTES = 4 * 2**20  # parameters larger than this are spread over the data axis too

# Tensor parallelism, by the last two axes of a kernel: the first dense layer of a pair is cut by its outputs, the
# second by its inputs, so that only the pair's result is summed over devices. What no row matches is replicated.
RULES = (
    (r".*/attention/(query|key|value)/kernel", (None, MODEL)),
    (r".*/attention/out/kernel", (MODEL, None)),
    (r".*/ffn/(up|gate)/kernel", (None, MODEL)),
    (r".*/ffn/down/kernel", (MODEL, None)),
    (r"text/token_embedding", (MODEL, None)),
)


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """Arrange all devices as (data, model); data -1 takes what the model axis leaves.

    Raises:
        UserError: the product is not the number of devices.
    """
    devices = jax.device_count()
    data = devices // model if data == -1 else data
    if data * model != devices:
        raise UserError(
            f"{data} x {model} devices were asked for and there are {devices}; "
            "set --config.data_parallel=-1 and a --config.model_parallel that divides them."
        )
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def parameter_spec(name: str, shape: tuple[int, ...], itemsize: int, mesh: Mesh) -> P:
    """The partition of one parameter: its row of the table, then the largest free axis over data if it is large."""
    axes: list[str | None] = [None] * len(shape)
    for pattern, last_axes in RULES:
        if re.fullmatch(pattern, name):
            for axis, mesh_axis in enumerate(last_axes, start=len(shape) - 2):
                if mesh_axis and mesh.shape[mesh_axis] > 1 and shape[axis] % mesh.shape[mesh_axis] == 0:
                    axes[axis] = mesh_axis
            break
    if mesh.shape[DATA] > 1 and np.prod(shape) * itemsize > FSDP_BYTES:
        free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % mesh.shape[DATA] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = DATA
    return P(*axes)


def parameter_shardings(parameters: AbstractParameters, mesh: Mesh) -> dict[str, NamedSharding]:
    """One sharding per parameter."""
    return {
        name: NamedSharding(mesh, parameter_spec(name, leaf.shape, np.dtype(leaf.dtype).itemsize, mesh))
        for name, leaf in parameters.items()
    }


def like_parameters(tree: Any, shardings: dict[str, NamedSharding], mesh: Mesh) -> Any:
    """Shardings for a tree that holds dicts by parameter name (optimiser moments) beside other leaves (counts)."""

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = next((key.key for key in reversed(path) if getattr(key, "key", None) in shardings), None)
        return shardings[name] if name is not None and leaf.ndim else NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(of, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over the data axis."""
    return NamedSharding(mesh, P(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())
