"""The arrays of a step on disk: nested dicts, as orbax writes them. The only module that imports orbax.

A zarr array for each parameter, in one OCDBT store: the step's own, or that of a pack (`frozen.py`). Who only segments
reads them with TensorStore alone, since importing orbax takes longer than reading a small model.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore

from dinov3seg_jax.errors import UserError, is_outage, one_line
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters
from dinov3seg_jax.places import is_remote
from dinov3seg_jax.store.frozen import pieces
from dinov3seg_jax.store.staging import Copied, is_reached, readable

# Else TensorStore waits without end on a connection on which nothing comes any more; so it tries another one.
PATIENCE = {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "60", "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1"}
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
        lie = pieces(folder, expected)
        with contextlib.ExitStack() as copies:
            at = {piece: copies.enter_context(readable(piece)) for piece in {*chain(*lie.values())}}
        opening = {name: [_open(at[piece] / PARAMETERS, name) for piece in lie[name]] for name in lie}
        # One after the other: what is on its way to the device is in memory twice.
        return {name: _on_first_device(name, leaf, opening[name]) for name, leaf in expected.items()}


def _open(folder: Path, name: str) -> tensorstore.Future:
    store = {"driver": "ocdbt", "base": _base(folder)}
    kept = {"driver": "zarr3", "kvstore": {**store, "path": f"{name.replace('/', '.')}/"}}
    return tensorstore.open(kept, open=True, read=True)


def _base(folder: Path) -> dict[str, str]:
    """What TensorStore calls a folder; not a URL, in which # and % mean something."""
    if not is_remote(folder):
        return {"driver": "file", "path": f"{folder}/"}
    _set_patience()
    bucket, _, path = str(folder).removeprefix("gs://").partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}


def _on_first_device(name: str, leaf: jax.ShapeDtypeStruct, opening: list[tensorstore.Future]) -> jax.Array:
    arrays = [future.result() for future in opening]
    held = arrays[0].dtype
    shape = (sum(array.shape[0] for array in arrays), *arrays[0].shape[1:]) if len(arrays) > 1 else arrays[0].shape
    floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (held.numpy_dtype, leaf.dtype))
    if shape != leaf.shape or not (held.numpy_dtype == leaf.dtype or floats):
        raise ValueError(f"'{name}' is {held.name} {list(shape)}, not {leaf.dtype} {list(leaf.shape)}")
    parts = [future.result().astype(leaf.dtype, copy=False) for future in [array.read() for array in arrays]]
    return jax.block_until_ready(jax.device_put(parts[0] if len(parts) == 1 else np.concatenate(parts)))


def save(folder: Path, parameters: Parameters, optimizer: Any, progress: dict[str, Any]) -> Any:
    """Write a step in the background; all processes call it together, each for its own parts of the arrays.

    Returns:
        A response, whose `result` waits until all of them are done, and raises what went wrong.
    """
    content = {PARAMETERS: _nested(parameters), OPTIMIZER: jax.tree.leaves(optimizer)}
    if jax.default_backend() == "cpu":
        # What is saved shares memory with its arrays there, and the next step writes over them.
        content = jax.tree.map(jnp.copy, content)
    return _write(folder, content | {PROGRESS: progress})


def save_pack(folder: Path, parameters: Parameters) -> Any:
    """Write arrays that nobody will write over, as `save` does."""
    return _write(folder, {PARAMETERS: _nested(parameters)})


def _write(folder: Path, content: dict[str, Any]) -> Any:
    """Write in place, as buckets can, which rename nothing: what says that the folder is whole is written later."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    if is_reached(folder):
        with context:
            return ocp.save_checkpointables_async(_named(folder), content)

    def save(stage: Path) -> Any:
        with context:
            return ocp.save_checkpointables_async(stage, content)

    return Copied(folder, save)


def _named(folder: Path) -> Path | str:
    """A folder as orbax takes it, whose own client is not to remember what was in it."""
    if not is_remote(folder):
        return folder
    import fsspec

    _set_patience()
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return str(folder)


def _set_patience() -> None:
    for variable, value in PATIENCE.items():
        os.environ.setdefault(variable, value)


def read_sharded(
    folder: Path, expected: AbstractParameters, shardings: Mapping[str, jax.sharding.Sharding]
) -> Parameters:
    """Read parameters of a step onto several devices, which all processes do together.

    Args:
        folder: absolute; of the step.
        expected: their names, shapes and types, all that the step holds.
        shardings: by name. A stack of blocks that lies in two places is never cut along its first axis.

    Raises:
        UserError: the step holds other arrays.
    """
    with loading(folder):
        lie = pieces(folder, expected)
    by_folder: dict[Path, dict[str, jax.ShapeDtypeStruct]] = {folder: {}}
    for name, places in lie.items():
        for place, shape in places.items():
            piece = jax.ShapeDtypeStruct(shape, expected[name].dtype, sharding=shardings[name])
            by_folder.setdefault(place, {})[name] = piece
    held = {
        place: _flat(_load(place, {PARAMETERS: _nested(described)}, some=place != folder)[PARAMETERS])
        for place, described in by_folder.items()
    }
    return {name: _joined([held[place][name] for place in places]) for name, places in lie.items()}


def read_progress(folder: Path) -> dict[str, Any]:
    """What a step says of the run.

    Raises:
        UserError: it cannot be read.
    """
    return _load(folder, {PROGRESS: None})[PROGRESS]


class Step(NamedTuple):
    """All that a step says."""

    trainable: Parameters
    frozen: Parameters  # of a stack of blocks, perhaps the first ones; the others are in `trainable`
    optimizer: Any
    progress: dict[str, Any]


def read_step(folder: Path, trainable: AbstractParameters, frozen: AbstractParameters, optimizer: Any) -> Step:
    """All of a step, onto devices.

    Args:
        folder: absolute; of the step.
        trainable, frozen, optimizer: described, with shardings.

    Raises:
        UserError: the step is of another model or optimiser.
    """
    packed: dict[Path, dict[str, jax.ShapeDtypeStruct]] = {}
    with loading(folder):
        for name, places in pieces(folder, frozen).items():
            packed.setdefault(next(iter(places)), {})[name] = frozen[name]
    inside = packed.pop(folder, {})  # as in every step once, with the stacks of blocks whole
    parameters = trainable | {name: _whole(trainable.get(name), leaf) for name, leaf in inside.items()}
    described = {PARAMETERS: _nested(parameters), OPTIMIZER: jax.tree.leaves(optimizer), PROGRESS: None}
    held = _load(folder, described, keep=False)
    found = _flat(held[PARAMETERS])
    held_frozen: Parameters = {}
    for pack, arrays in packed.items():
        held_frozen |= _flat(_load(pack, {PARAMETERS: _nested(arrays)}, some=True)[PARAMETERS])
    for name, leaf in inside.items():
        array = found.pop(name)
        if name in trainable:
            found[name] = jax.device_put(array[leaf.shape[0] :], trainable[name].sharding)
            array = array[: leaf.shape[0]].astype(leaf.dtype)
        held_frozen[name] = jax.device_put(array, leaf.sharding)
    state = jax.tree.unflatten(jax.tree.structure(optimizer), held[OPTIMIZER])
    return Step(
        {name: found[name] for name in trainable}, {name: held_frozen[name] for name in frozen}, state, held[PROGRESS]
    )


def _whole(trainable: jax.ShapeDtypeStruct | None, frozen: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if trainable is None:
        return frozen
    shape = (frozen.shape[0] + trainable.shape[0], *frozen.shape[1:])
    return jax.ShapeDtypeStruct(shape, trainable.dtype, sharding=trainable.sharding)


def _joined(parts: list[jax.Array]) -> jax.Array:
    if len(parts) == 1:
        return parts[0]
    return jax.jit(lambda *blocks: jnp.concatenate(blocks), out_shardings=parts[0].sharding)(*parts)


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a step is read into a sentence.

    Raises:
        UserError: in place of whatever the readers raise.
    """
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        if is_outage(error):
            raise
        raise UserError(
            f"checkpoint '{folder}' is undamaged but cannot be loaded ({shortened(error)}); its model or optimizer is "
            "another one: set the options that config.json names."
        ) from error


def shortened(error: BaseException) -> str:
    """What an error of orbax' says, shortened: long ones say at the end what it was."""
    text = one_line(error.__cause__ or error)
    return text if len(text) < 250 else f"{text[:50]} ... {text[-200:]}"


def _load(folder: Path, what: dict[str, Any], some: bool = False, keep: bool = True) -> dict[str, Any]:
    """What is asked for of a folder; of its arrays perhaps `some` alone, while else it may hold no others.

    A copy of it, if it needs one, is kept or not.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = some
    with loading(folder), context, readable(folder, keep) as where:
        return ocp.load_checkpointables(_named(where), what)


def _nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(parameters, sep="/")


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import flatten_dict

    return flatten_dict(nested, sep="/")
