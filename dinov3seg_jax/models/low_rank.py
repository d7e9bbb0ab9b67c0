"""Low-rank updates of the towers' attention: a matrix stays as it is, and the product of two thin ones is added to it.

After LoRA (Hu et al. 2021, arXiv 2106.09685), for the queries and values, with its alpha equal to the rank: what it
would scale, the updates' own learning rate does. The updates are parameters beside the matrix's, and `merge` adds them,
so that whoever binds parameters sees the sum: a model in training is its merged export.
"""

import math
import re
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dinov3seg_jax.models.parameters import AbstractParameters, Parameters

UPDATED = r"(vision(/backbone|/head)?|text)/blocks/attention/(query|value)/kernel"  # what may be updated
KERNEL, DOWN, UP = "/kernel", "/low_rank/down", "/low_rank/up"


def describe_updates(described: AbstractParameters, rank: int) -> AbstractParameters:
    """The updates of a model's parameters: "down" [depth, inputs, rank] and "up" [depth, rank, outputs], float32.

    Args:
        described: all parameters of the model.
        rank: of the updates.
    """
    updates = {}
    for name, leaf in described.items():
        if re.fullmatch(UPDATED, name):
            depth, inputs, outputs = leaf.shape
            matrix = name.removesuffix(KERNEL)
            updates[matrix + DOWN] = jax.ShapeDtypeStruct((depth, inputs, rank), jnp.float32)
            updates[matrix + UP] = jax.ShapeDtypeStruct((depth, rank, outputs), jnp.float32)
    return updates


def draw_updates(described: AbstractParameters, key: Array) -> Parameters:
    """New updates, which change nothing: "down" is random, of variance 1 / inputs, and "up" is 0.

    Args:
        described: by `describe_updates`.
        key: of the draw. That of a matrix depends on its name alone.
    """

    def draw(name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        if name.endswith(UP):
            return jnp.zeros(leaf.shape, leaf.dtype)
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return jax.random.normal(own, leaf.shape, leaf.dtype) / math.sqrt(leaf.shape[1])

    return {name: draw(name, leaf) for name, leaf in described.items()}


def is_update(name: str) -> bool:
    """Whether a parameter belongs to an update."""
    return name.endswith((DOWN, UP))


def merge(parameters: Parameters) -> Parameters:
    """Add updates to their matrices, as float32; the others are as they were, and there are no updates any more."""
    merged = {name: value for name, value in parameters.items() if not is_update(name)}
    for name, down in parameters.items():
        if name.endswith(DOWN):
            matrix = name.removesuffix(DOWN)
            update = jnp.matmul(down, parameters[matrix + UP], precision="highest")
            merged[matrix + KERNEL] = parameters[matrix + KERNEL].astype(jnp.float32) + update
    return merged
