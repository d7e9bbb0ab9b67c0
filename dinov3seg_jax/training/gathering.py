"""Parameters that are cut over devices, brought together once a step and not at each use: fewer bytes between chips.

The compiler gathers a parameter where it is used: in the forward pass, and again where the backward pass computes
anew. On TPUs, slices of a few rows fill no tile, and it then adds up arrays of zeros instead, at twice the bytes. Here
each device's slice is sent once as it is, in the type that the model computes in. What comes together stays until the
step ends, and takes memory.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from dinov3seg_jax.models.mesh import DATA
from dinov3seg_jax.models.parameters import Parameters

CAST = re.compile(r"(vision|text)/.*blocks/(attention|ffn)/.*kernel")  # by the model, before it multiplies
Shardings = Mapping[str, NamedSharding]


def gathered(parameters: Parameters, shardings: Shardings, dtype: Any) -> Parameters:
    """All of each parameter, on every device. Gradients lie as the parameters do, in their type.

    Args:
        parameters: by name.
        shardings: theirs. What is not cut over the data axis is passed on.
        dtype: to which the model casts matrices of the towers. They are sent so.
    """
    return parameters | {
        name: _gather(parameters[name].astype(_sent_as(name, parameters[name], dtype)), shardings[name].spec)
        for name in _cut(parameters, shardings)
    }


def gathered_bytes(parameters: Parameters, shardings: Shardings, dtype: Any) -> int:
    """What of it is held beside the parameters on each device, at most; of described ones too."""
    return sum(
        parameters[name].size * _sent_as(name, parameters[name], dtype).itemsize for name in _cut(parameters, shardings)
    )


def _cut(parameters: Parameters, shardings: Shardings) -> list[str]:
    return [name for name in parameters if DATA in shardings[name].spec]


def _sent_as(name: str, value: Any, dtype: Any) -> jnp.dtype:
    return jnp.dtype(dtype if CAST.fullmatch(name) else value.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: Float[Array, "..."], spec: P) -> Float[Array, "..."]:
    axis = spec.index(DATA)

    def whole(own: Float[Array, "..."]) -> Float[Array, "..."]:
        slices = jax.lax.all_gather(own, DATA, axis=axis)
        together = slices.reshape(*own.shape[:axis], -1, *own.shape[axis + 1 :])
        # Else the compiler would keep slices apart, and a scan read its layers from everywhere.
        return with_layout_constraint(together, Layout(tuple(range(together.ndim))))

    cut = P(*[None] * axis, DATA)
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(whole, mesh=mesh, in_specs=cut, out_specs=P(), axis_names={DATA}, check_vma=False)(x)


def _forwards(x: Float[Array, "..."], spec: P) -> tuple[Float[Array, "..."], None]:
    return _gather(x, spec), None


def _backwards(spec: P, _: None, gradient: Float[Array, "..."]) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, spec),)


_gather.defvjp(_forwards, _backwards)
