"""Digests of arrays by their content, which the devices work out where the arrays lie: no copy, and none for the host.

The bits of every element are mixed with its place, by the finisher of MurmurHash3 (Appleby, 2011), and summed modulo
2**32, twice. Sums of integers have no order: the digest is the same on any devices. It tells arrays apart that differ
by chance, not by intent.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

SECOND = 0x9E3779B9  # sets the second sum apart from the first
BITS = {2: jnp.uint16, 4: jnp.uint32}  # by bytes of an element


def digests(arrays: Mapping[str, Array]) -> dict[str, str]:
    """The digest of each array, with its type and shape, in hex; all processes call it together.

    Args:
        arrays: by name, of 2 or 4 bytes an element.
    """
    on_devices = {name: _digester(_everywhere(array.sharding))(array) for name, array in arrays.items()}
    return {name: "".join(f"{word:08x}" for word in np.asarray(words).tolist()) for name, words in on_devices.items()}


@functools.cache
def _digester(out: NamedSharding | None) -> jax.stages.Wrapped:
    return jax.jit(_digest, out_shardings=out)


def _everywhere(sharding: jax.sharding.Sharding) -> NamedSharding | None:
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


def _digest(array: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    bits = jax.lax.bitcast_convert_type(array, BITS[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    first = _mix(bits + _mix(place))
    second = _mix(first + jnp.uint32(SECOND) * place)
    return jnp.stack([words.sum(dtype=jnp.uint32) for words in (first, second)])


def _mix(words: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
