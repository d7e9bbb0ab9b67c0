"""The arrays of a step on disk: nested dicts, as orbax writes them. The only module that imports orbax.

A zarr array for each parameter, in one OCDBT store. Who only segments reads it with TensorStore alone, since importing
orbax takes longer than reading a small model.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tensorstore

from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters

PARAMETERS, OPTIMIZER, PROGRESS = "parameters", "optimizer", "progress"  # what a step holds


def read_on_first_device(folder: Path, expected: AbstractParameters) -> Parameters:
    """Read parameters of a step onto the first device.

    Args:
        folder: absolute; of the step.
        expected: their names, shapes and types; stored floats of another width become these.

    Raises:
        UserError: one is missing, damaged, or another array.
    """
    with loading(folder):
        return _read(folder / PARAMETERS, expected)


def _read(folder: Path, expected: AbstractParameters) -> Parameters:
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


def save(folder: Path, parameters: Parameters, optimizer: Any, progress: dict[str, Any]) -> Any:
    """Write a step in the background; all processes call it together, each for its own parts of the arrays.

    Returns:
        A response, whose `result` waits until all of them are done, and raises what went wrong.
    """
    from orbax.checkpoint import v1 as ocp

    content = {PARAMETERS: _nested(parameters), OPTIMIZER: jax.tree.leaves(optimizer)}
    if jax.default_backend() == "cpu":
        # What is saved shares memory with its arrays there, and the next step writes over them.
        content = jax.tree.map(jnp.copy, content)
    return ocp.save_checkpointables_async(folder, content | {PROGRESS: progress})


def read_sharded(
    folder: Path, expected: AbstractParameters, shardings: Mapping[str, jax.sharding.Sharding]
) -> Parameters:
    """Read parameters of a step onto several devices, which all processes do together.

    Args:
        folder: absolute; of the step.
        expected: their names, shapes and types, all that the step holds.
        shardings: by name.

    Raises:
        UserError: the step holds other arrays.
    """
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name]) for name, leaf in expected.items()
    }
    return _flat(_load(folder, {PARAMETERS: _nested(placed)})[PARAMETERS])


def read_progress(folder: Path) -> dict[str, Any]:
    """What a step says of the run.

    Raises:
        UserError: it cannot be read.
    """
    return _load(folder, {PROGRESS: None})[PROGRESS]


def read_step(folder: Path, parameters: AbstractParameters, optimizer: Any) -> tuple[Parameters, Any, dict[str, Any]]:
    """All of a step: parameters, optimiser state and progress.

    Args:
        folder: absolute; of the step.
        parameters, optimizer: described, with shardings.

    Raises:
        UserError: the step is of another model or optimiser.
    """
    described = {PARAMETERS: _nested(parameters), OPTIMIZER: jax.tree.leaves(optimizer), PROGRESS: None}
    held = _load(folder, described)
    state = jax.tree.unflatten(jax.tree.structure(optimizer), held[OPTIMIZER])
    return _flat(held[PARAMETERS]), state, held[PROGRESS]


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a step is read into a sentence.

    Raises:
        UserError: in place of whatever the readers raise.
    """
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"checkpoint '{folder}' is undamaged but cannot be loaded ({shortened(error)}); its model or optimizer is "
            "another one: set the options that config.json names."
        ) from error


def shortened(error: BaseException) -> str:
    """What an error of orbax' says, shortened: long ones say at the end what it was."""
    text = one_line(error.__cause__ or error)
    return text if len(text) < 250 else f"{text[:50]} ... {text[-200:]}"


def _load(folder: Path, what: dict[str, Any]) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    with loading(folder):
        return ocp.load_checkpointables(folder, what)


def _nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(parameters, sep="/")


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import flatten_dict

    return flatten_dict(nested, sep="/")
