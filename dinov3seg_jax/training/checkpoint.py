"""Writing checkpoints: `<workdir>/checkpoints/<step>`, whole or not at all; and going on from the newest.

A step holds "parameters" (those that train, as nested dicts of arrays), "optimizer", "progress" (which data it was
trained on, and the seconds), checksums, and a reference to what no step changes, which is kept once (`frozen.py` of
`store`). It is written under another name, and gets its own when its files were read back and the checksums are there:
so a folder whose name is a number was whole once, and one that no longer matches its checksums is damaged.
docs/checkpoints.md says what happens then.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from tqdm import tqdm

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters
from dinov3seg_jax.processes import is_first
from dinov3seg_jax.store.arrays import read_step, save, save_pack, shortened
from dinov3seg_jax.store.checksums import CHECKSUMS_FILE, damage, settle, write_checksums
from dinov3seg_jax.store.evaluations import best_steps
from dinov3seg_jax.store.frozen import (
    ARRAYS_FILE,
    DIGITS,
    FROZEN_FOLDER,
    REFERENCE_FILE,
    packs_in,
    packs_of,
    steps_that_may_refer,
)
from dinov3seg_jax.store.run import STEPS_FOLDER, finished_steps, newest_whole
from dinov3seg_jax.training.digests import digests

EMPTY: AbstractParameters = {}
UNFINISHED = ".unfinished"  # ends, or goes on, in the names of what is being written or deleted


class Restored(NamedTuple):
    """What a run continues from."""

    step: int
    parameters: Parameters  # that train
    frozen: Parameters
    optimizer: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. All of its processes make one and call its methods in the same order."""

    def __init__(self, workdir: Path, keep: int, home: Path | None = None):
        """Clear away what an earlier process did not finish.

        Args:
            workdir: on a disk that all processes share.
            keep: how many of the newest steps stay, beside the best one.
            home: the folder of the run that this one is a part of, where both keep what is frozen; default `workdir`.

        Raises:
            UserError: processes on other hosts do not see the same folder.
        """
        self._named = workdir / STEPS_FOLDER  # as the user says it
        self._folder = workdir.resolve() / STEPS_FOLDER
        self._home = (home or workdir).resolve()
        self._packs = self._home / FROZEN_FOLDER
        self._reference: dict[Path, dict[str, list[int]]] = {}  # of the steps to come: what packs hold for them
        self._keep = keep
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._writing = self._folder  # the folder that is being written, by its last name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear_unfinished()
        if jax.process_count() > 1:
            _refuse_folders_of_their_own(self._folder)

    def share(self, frozen: Parameters) -> None:
        """Keep what no step changes, in the background; the steps that are saved from now on refer to it.

        What lies there already is not written again: of another run of this folder, or of an earlier start.

        Args:
            frozen: all of it; nobody may write over its arrays.

        Raises:
            UserError: it cannot be written.
        """
        shapes = {name: list(array.shape) for name, array in sorted(frozen.items())}
        if {name: shape for held in self._reference.values() for name, shape in held.items()} == shapes:
            return  # as it was read
        content = digests(frozen)
        arrays = {name: {"shape": shape, "digest": content[name]} for name, shape in shapes.items()}
        found = self._find(arrays) if is_first() else {}
        missing = np.array([name not in found for name in arrays])
        if jax.process_count() > 1:
            missing = broadcast_one_to_all(missing)
        written = {name: arrays[name] for name, wanted in zip(arrays, missing, strict=True) if wanted}
        pack = self._packs / hashlib.sha256(json.dumps(written).encode()).hexdigest()[:DIGITS]
        self._reference = {}
        for name, shape in shapes.items():
            self._reference.setdefault(found.get(name, pack), {})[name] = shape
        if not written:
            return
        self._wait()
        self._writing = pack
        try:
            response = save_pack(pack, {name: frozen[name] for name in written})
        except Exception as error:
            raise self._not_written(error) from error
        self._saving = self._background.submit(self._finish_pack, pack, written, response)

    def save(self, step: int, parameters: Parameters, optimizer: Any, progress: dict[str, Any]) -> None:
        """Write a step in the background, after what came before; `close` waits for it.

        Args:
            step: its number.
            parameters: that train; all, if nothing was shared.
            optimizer, progress: of the run.

        Raises:
            UserError: this step or what came before cannot be written.
        """
        self._wait()
        self._writing = self._folder / str(step)
        try:
            response = save(self._unfinished(step), parameters, optimizer, progress)
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

    def restore(
        self, parameters: AbstractParameters, optimizer: Any, frozen: AbstractParameters = EMPTY
    ) -> Restored | None:
        """Load the newest step that is whole onto the given shapes and shardings; None where there is no step at all.

        Steps that are newer and damaged are put aside, under names that end in ".damaged".

        Args:
            parameters: those that train, described.
            optimizer: its state, described.
            frozen: the other parameters, described.

        Raises:
            UserError: no step is whole, or the newest that is belongs to another model.
        """
        step = newest_whole(self._folder, put_aside=True)
        if step is None:
            return None
        held = read_step(self._folder / str(step), parameters, frozen, optimizer)
        self._reference = packs_of(self._folder / str(step))
        return Restored(step, *held)

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
        before = max(finished_steps(self._folder), default=None)
        self._clear_unfinished()  # a full disk needs the room
        goes_on = "from the beginning" if before is None else f"from step {before}"
        return UserError(
            f"checkpoint '{self._writing}' could not be written ({shortened(error)}); "
            f"mend that, such as a full disk, and start again: the run goes on {goes_on}."
        )

    def _clear_unfinished(self) -> None:
        if is_first():
            _remove(self._folder.glob(f"*{UNFINISHED}*"))
            _remove(pack for pack in packs_in(self._packs) if not (pack / CHECKSUMS_FILE).exists())

    def _find(self, arrays: Mapping[str, Any]) -> dict[str, Path]:
        """The whole packs that hold arrays of this content."""
        found: dict[str, Path] = {}
        for pack in packs_in(self._packs):
            if pack not in self._reference and damage(pack):  # those were checked when they were read
                self._delete(pack)
                continue
            held = json.loads((pack / ARRAYS_FILE).read_bytes())
            found |= {name: pack for name, said in arrays.items() if held.get(name) == said}
        return found

    def _finish_pack(self, pack: Path, arrays: Mapping[str, Any], response: Any) -> None:
        """In the background: when all processes have written their parts, the first one checks, and says so last."""
        response.result()
        if is_first():
            (pack / ARRAYS_FILE).write_text(json.dumps(arrays, indent=1) + "\n")
            write_checksums(pack)
            settle(self._packs)

    def _finish(self, step: int, response: Any) -> None:
        """In the background: when all processes have written their parts, the first one checks and names the step."""
        response.result()
        if not is_first():
            return
        if self._reference:
            reference = {pack.name: shapes for pack, shapes in self._reference.items()}
            (self._unfinished(step) / REFERENCE_FILE).write_text(json.dumps(reference, indent=1) + "\n")
        write_checksums(self._unfinished(step))
        final = self._folder / str(step)
        os.rename(self._unfinished(step), final)
        settle(self._folder)
        tqdm.write(f"saved {self._named / str(step)}")
        steps = finished_steps(self._folder)
        newest = steps[-self._keep :]
        best = best_steps(self._named.parent, newest)  # of each: if the newest is damaged, the one before counts
        for old in sorted({*steps} - {*newest} - best):
            doomed = self._unfinished(old)
            os.rename(self._folder / str(old), doomed)  # so that nobody takes a half for the whole
            _remove([doomed])
        self._sweep()

    def _sweep(self) -> None:
        """Delete the packs to which no step refers any more."""
        try:
            used = {pack.name for step in steps_that_may_refer(self._home, STEPS_FOLDER) for pack in packs_of(step)}
        except (OSError, ValueError):  # a damaged step: nobody knows what it needs
            return
        used |= {pack.name for pack in self._reference}
        for pack in packs_in(self._packs):
            if pack.name not in used:
                self._delete(pack)

    @staticmethod
    def _delete(pack: Path) -> None:
        (pack / CHECKSUMS_FILE).unlink(missing_ok=True)  # so that nobody takes a half for the whole
        _remove([pack])


def _refuse_folders_of_their_own(folder: Path) -> None:
    number = int(broadcast_one_to_all(np.int32(int.from_bytes(os.urandom(4)) >> 1)))
    token = folder / f"{number}{UNFINISHED}"
    if is_first():
        token.touch()
    process_allgather(np.int32(0))  # wait for it
    seen = process_allgather(np.int32(token.exists()))
    if is_first():
        token.unlink()
    if not seen.all():
        raise UserError(f"'{folder}' is not the same folder for all processes; set --config.workdir to a shared disk.")


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
