"""Reads the arrays of a checkpoint without orbax, whose import takes longer than reading a small model."""

from pathlib import Path

import jax
import jax.numpy as jnp
import tensorstore

from dinov3seg_jax.models.parameters import AbstractParameters, Parameters


def read_stored(folder: Path, expected: AbstractParameters) -> Parameters:
    """Read what orbax wrote onto the first device: a zarr array for each parameter, in one OCDBT store.

    Args:
        folder: absolute; of the parameters of a step.
        expected: their names, shapes and types; stored floats of another width become these.

    Raises:
        ValueError: one is missing, damaged, or another array.
    """
    # Not a URL, in which # and % mean something.
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    opening = {
        name: tensorstore.open(
            {"driver": "zarr3", "kvstore": {**store, "path": f"{name.replace('/', '.')}/"}}, open=True, read=True
        )
        for name in expected
    }
    parameters = {}
    for name, leaf in expected.items():
        array = opening[name].result()
        held = array.dtype.numpy_dtype
        floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (held, leaf.dtype))
        if array.shape != leaf.shape or not (held == leaf.dtype or floats):
            raise ValueError(f"'{name}' is {array.dtype.name} {list(array.shape)}, not {leaf.dtype} {list(leaf.shape)}")
        # One after the other: what is on its way to the device is in memory twice.
        values = array.read().result().astype(leaf.dtype, copy=False)
        parameters[name] = jax.block_until_ready(jax.device_put(values))
    return parameters
