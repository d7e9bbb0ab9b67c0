"""Checkpoints: `<workdir>/config.json` and `<workdir>/checkpoints/<step>`. Only this module imports orbax.

A step holds "parameters" (all of them, as nested dicts of arrays), "optimizer", "progress" (where the data stream is,
and the seconds trained) and a manifest. It is written under another name, and gets its own when its files were read
back and the manifest is there: so a folder whose name is a number was whole once, and one that no longer matches its
manifest is damaged. docs/checkpoints.md says what happens then.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from tqdm import tqdm

from dinov3seg_jax.cache.traced import remember
from dinov3seg_jax.config import Config, ModelConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters
from dinov3seg_jax.store.arrays import read_stored
from dinov3seg_jax.store.checksums import damage, settle, write_manifest
from dinov3seg_jax.store.converted import model_config, read_arrays, read_manifest
from dinov3seg_jax.store.folder import CONFIG_FILE as CONFIG_FILE
from dinov3seg_jax.store.folder import STEPS_FOLDER, finished_steps, is_converted, read_config
from dinov3seg_jax.store.folder import write_config as write_config

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp  # elsewhere it and Flax only where they are used: their import takes a while

UNFINISHED = ".unfinished"  # ends, or goes on, in the names of what is being written or deleted
DAMAGED = ".damaged"  # ends the names of steps that were passed over


class Restored(NamedTuple):
    """What a run continues from."""

    step: int
    parameters: Parameters
    optimizer: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. All of its processes make one and call its methods in the same order."""

    def __init__(self, workdir: Path, keep: int):
        """Clear away what an earlier process did not finish.

        Args:
            workdir: on a disk that all processes share.
            keep: how many of the newest steps stay.

        Raises:
            UserError: processes on other hosts do not see the same folder.
        """
        self._named = workdir / STEPS_FOLDER  # as the user says it
        self._folder = self._named.absolute()
        self._keep = keep
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._saving_step = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        if _is_first():
            _remove(self._folder.glob(f"*{UNFINISHED}*"))
        if jax.process_count() > 1:
            _refuse_folders_of_their_own(self._folder)

    def save(self, step: int, parameters: Parameters, optimizer: Any, progress: dict[str, Any]) -> None:
        """Write a step in the background, after the one before; `close` waits for it.

        Raises:
            UserError: this step or the one before cannot be written.
        """
        from orbax.checkpoint import v1 as ocp

        self._wait()
        content = {"parameters": _nested(parameters), "optimizer": jax.tree.leaves(optimizer)}
        if jax.default_backend() == "cpu":
            # What is saved shares memory with its arrays there, and the next step writes over them.
            content = jax.tree.map(jnp.copy, content)
        self._saving_step = step
        try:
            response = ocp.save_checkpointables_async(self._unfinished(step), content | {"progress": progress})
        except Exception as error:
            raise self._not_written(error) from error
        self._saving = self._background.submit(self._finish, step, response)

    def check(self) -> None:
        """Notice early that a step could not be written, without waiting for one that is being written.

        Raises:
            UserError: it could not.
        """
        if self._saving is not None and self._saving.done():
            self._wait()

    def restore(self, parameters: AbstractParameters, optimizer: Any) -> Restored | None:
        """Load the newest step that is whole onto the given shapes and shardings; None where there is no step at all.

        Steps that are newer and damaged are put aside, under names that end in ".damaged".

        Raises:
            UserError: no step is whole, or the newest that is belongs to another model.
        """
        step = _newest_whole(self._folder, put_aside=True)
        if step is None:
            return None
        loaded = _load(
            self._folder / str(step),
            {
                "parameters": _nested(parameters),
                "optimizer": jax.tree.leaves(optimizer),
                "progress": None,
            },
        )
        optimizer = jax.tree.unflatten(jax.tree.structure(optimizer), loaded["optimizer"])
        return Restored(step, _flat(loaded["parameters"]), optimizer, loaded["progress"])

    def close(self) -> None:
        """Wait until everything is on disk.

        Raises:
            UserError: the last step could not be written.
        """
        try:
            self._wait()
        finally:
            self._background.shutdown()

    def _unfinished(self, step: int) -> Path:
        return self._folder / f"{step}{UNFINISHED}"

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except Exception as error:  # orbax's, of many types
            raise self._not_written(error) from error

    def _not_written(self, error: Exception) -> UserError:
        step, before = self._saving_step, max(finished_steps(self._folder), default=None)
        if _is_first():
            _remove(self._folder.glob(f"{step}{UNFINISHED}*"))  # a full disk needs the room
        goes_on = "from the beginning" if before is None else f"from step {before}"
        return UserError(
            f"checkpoint '{self._folder / str(step)}' could not be written ({_reason(error)}); "
            f"mend that, such as a full disk, and start again: the run goes on {goes_on}."
        )

    def _finish(self, step: int, response: "ocp.AsyncResponse[None]") -> None:
        """In the background: when all processes have written their parts, the first one checks and names the step."""
        response.result()
        if not _is_first():
            return
        write_manifest(self._unfinished(step))
        final = self._folder / str(step)
        os.rename(self._unfinished(step), final)
        settle(self._folder)
        tqdm.write(f"saved {self._named / str(step)}")
        for old in finished_steps(self._folder)[: -self._keep]:
            doomed = self._unfinished(old)
            os.rename(self._folder / str(old), doomed)  # so that nobody takes a half for the whole
            _remove([doomed])


def load_parameters(workdir: str | Path, shardings: dict[str, Any] | None = None) -> tuple[Config, Parameters]:
    """Load the newest weights of a run, or the parts that a converted folder holds.

    Args:
        workdir: the folder that train.py or `python -m convert` wrote.
        shardings: by parameter name; default the first device.

    Raises:
        UserError: the folder is neither, holds no complete step, or a step that does not fit its config.
    """
    if is_converted(workdir):
        return Config(model=model_config(read_manifest(workdir))), read_arrays(workdir, shardings=shardings)
    config = read_config(Path(workdir))
    shapes = _shapes(config.model)
    if shardings is None:
        folder = _newest_folder(Path(workdir))
        with _loading(folder):
            return config, read_stored(folder / "parameters", shapes)
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name]) for name, leaf in shapes.items()
    }
    loaded = _load(_newest_folder(Path(workdir)), {"parameters": _nested(placed)})
    return config, _flat(loaded["parameters"])


def _shapes(model: ModelConfig) -> AbstractParameters:
    def describe() -> bytes:
        from dinov3seg_jax.models.graph import ALL_FROZEN, build

        shapes = {name: [leaf.shape, leaf.dtype.name] for name, leaf in build(model, ALL_FROZEN)[1].items()}
        return json.dumps(shapes).encode()

    said = json.loads(remember(f"parameters of {model}", describe))
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in said.items()}


def read_progress(workdir: str | Path) -> dict[str, Any]:
    """What the newest step says of the run: "data" and "train_seconds".

    Raises:
        UserError: as for `load_parameters`.
    """
    return _load(_newest_folder(Path(workdir)), {"progress": None})["progress"]


def _newest_folder(workdir: Path) -> Path:
    folder = (workdir / STEPS_FOLDER).absolute()
    step = _newest_whole(folder)
    if step is None:
        raise UserError(f"'{workdir}' holds no complete checkpoint; let train.py reach train.checkpoint_every steps.")
    return folder / str(step)


def _newest_whole(folder: Path, put_aside: bool = False) -> int | None:
    """The newest step that matches its manifest, as the first process finds it, which has all of them go by it.

    Raises:
        UserError: there are steps, but none is whole.
    """
    nothing, failed = -1, -2
    found, error = failed, UserError(f"no checkpoint in '{folder}' is whole; process 0 says which, and what to do.")
    if _is_first():
        try:
            step = _choose(folder, put_aside)
            found = nothing if step is None else step
        except UserError as its_own:
            error = its_own
    found = int(broadcast_one_to_all(np.int32(found)))
    if found == failed:
        raise error
    return None if found == nothing else found


def _choose(folder: Path, put_aside: bool) -> int | None:
    reasons: dict[int, str] = {}
    for step in reversed(finished_steps(folder)):
        reason = damage(folder / str(step))
        if reason is None:
            _warn(folder, reasons, step, put_aside)
            return step
        reasons[step] = reason
    if not reasons:
        return None
    listed = ", ".join(f"step {step}: {reason}" for step, reason in reasons.items())
    raise UserError(
        f"no checkpoint in '{folder}' is whole ({listed}); put one back from a copy, or delete it all to begin again."
    )


def _warn(folder: Path, reasons: dict[int, str], step: int, put_aside: bool) -> None:
    for damaged, reason in reasons.items():
        kept = ""
        if put_aside:
            aside = folder / f"{damaged}{DAMAGED}"
            _remove([aside])
            os.rename(folder / str(damaged), aside)
            kept = f"; it is now '{aside}'"
        message = (
            f"WARNING: checkpoint '{folder / str(damaged)}' is damaged: {reason}{kept}; step {step} is used instead"
        )
        print(message, file=sys.stderr, flush=True)


def _load(folder: Path, what: dict[str, Any]) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    with _loading(folder):
        return ocp.load_checkpointables(folder, what)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"checkpoint '{folder}' is undamaged but cannot be loaded ({_reason(error)}); its model or optimizer is "
            "another one: set the options that config.json names."
        ) from error


def _nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(parameters, sep="/")


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import flatten_dict

    return flatten_dict(nested, sep="/")


def _refuse_folders_of_their_own(folder: Path) -> None:
    number = int(broadcast_one_to_all(np.int32(int.from_bytes(os.urandom(4)) >> 1)))
    token = folder / f"{number}{UNFINISHED}"
    if _is_first():
        token.touch()
    process_allgather(np.int32(0))  # wait for it
    seen = process_allgather(np.int32(token.exists()))
    if _is_first():
        token.unlink()
    if not seen.all():
        raise UserError(f"'{folder}' is not the same folder for all processes; set --config.workdir to a shared disk.")


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error.__cause__ or error).split())
    return text if len(text) < 250 else f"{text[:50]} ... {text[-200:]}"  # long ones say at the end what it was


def _is_first() -> bool:
    return jax.process_index() == 0
