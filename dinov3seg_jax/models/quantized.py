"""Kernels held as int8, each with a float32 scale for every output channel, until a layer needs them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

SCALE = ":scale"  # after a parameter's name: that of its scales
STACK = "blocks/"  # in the names of kernels that `layers.run_stack` goes through layer by layer


class Quantized(NamedTuple):
    """`values * scale` is the array meant."""

    values: Int8[Array, "*n inputs outputs"]
    scale: Float[Array, "*n 1 outputs"]


def widen(tree: Any) -> Any:
    """The arrays meant, float32, wherever a tree holds `Quantized`; everything else as it is."""

    def widen_one(value: Any) -> Any:
        return value.values.astype(jnp.float32) * value.scale if isinstance(value, Quantized) else value

    return jax.tree.map(widen_one, tree, is_leaf=lambda value: isinstance(value, Quantized))


def join_scales(parameters: Mapping[str, Array]) -> dict[str, Any]:
    """Put int8 arrays and their scales together: widened, but those of stacks, which are widened layer by layer."""
    joined: dict[str, Any] = {}
    for name, value in parameters.items():
        if name.endswith(SCALE):
            continue
        scale = parameters.get(name + SCALE)
        pair = value if scale is None else Quantized(value, scale)
        joined[name] = pair if STACK in name else widen(pair)
    return joined
