"""Reads the arrays of a checkpoint without orbax, whose import takes longer than reading a small model."""

from pathlib import Path

import jax
import tensorstore

from dinov3seg_jax.parameters import AbstractParameters, Parameters


def read_stored(folder: Path, expected: AbstractParameters) -> Parameters:
    """Read what orbax wrote onto the first device: a zarr array for each parameter, in one OCDBT store.

    Args:
        folder: absolute; of the parameters of a step.
        expected: their names, shapes and types.

    Raises:
        ValueError: one is missing, damaged, or another array.
    """
    store = {"driver": "ocdbt", "base": f"file://{folder}"}
    opening = {
        name: tensorstore.open(
            {"driver": "zarr3", "kvstore": {**store, "path": f"{name.replace('/', '.')}/"}}, open=True, read=True
        )
        for name in expected
    }
    parameters = {}
    for name, leaf in expected.items():
        array = opening[name].result()
        if array.shape != leaf.shape or array.dtype.numpy_dtype != leaf.dtype:
            raise ValueError(f"'{name}' is {array.dtype.name} {list(array.shape)}, not {leaf.dtype} {list(leaf.shape)}")
        # One after the other: what is on its way to the device is in memory twice.
        parameters[name] = jax.block_until_ready(jax.device_put(array.read().result()))
    return parameters
