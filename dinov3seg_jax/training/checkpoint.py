"""Writing checkpoints: `<workdir>/checkpoints/<step>`, whole or not at all; and going on from the newest.

A step holds "parameters" (those that train, as nested dicts of arrays), "optimizer", "progress" (which data it was
trained on, and the seconds), checksums, and a reference to what no step changes, which is kept once (`frozen.py` of
`store`). Nothing is renamed, which a bucket could not do: a step is whole when its checksums are there, which are
written when its files were read back. Until then, and from before it is deleted, a file beside it says that it is
unfinished: so a folder without both was whole once, and like one that no longer matches its checksums it is damaged.
docs/checkpoints.md says what happens then.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from tqdm import tqdm

from dinov3seg_jax.errors import UserError, is_outage, outage_sentence
from dinov3seg_jax.folders import children, remove, settle
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters
from dinov3seg_jax.processes import is_first
from dinov3seg_jax.store.arrays import read_step, save, save_pack, shortened
from dinov3seg_jax.store.checksums import CHECKSUMS_FILE, damage, write_checksums
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
from dinov3seg_jax.store.run import STEPS_FOLDER, UNFINISHED, finished_steps, newest_whole
from dinov3seg_jax.store.staging import is_reached
from dinov3seg_jax.training.digests import digests

EMPTY: AbstractParameters = {}


class Restored(NamedTuple):
    """What a run continues from."""

    step: int
    parameters: Parameters  # that train
    frozen: Parameters
    optimizer: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. All of its processes make one and call its methods in the same order."""

    def __init__(self, workdir: Path, keep: int, home: Path | None = None, confirm: Callable[[], None] = lambda: None):
        """Clear away what an earlier process did not finish.

        Args:
            workdir: on a disk that all processes share.
            keep: how many of the newest steps stay, beside the best one.
            home: the folder of the run that this one is a part of, where both keep what is frozen; default `workdir`.
            confirm: asked by the first process before a step becomes whole; raises where the run is another's now.

        Raises:
            UserError: processes on other hosts do not see the same folder.
        """
        self._named = workdir / STEPS_FOLDER  # as the user says it
        self._folder = workdir.resolve() / STEPS_FOLDER
        self._home = (home or workdir).resolve()
        self._packs = self._home / FROZEN_FOLDER
        self._reference: dict[Path, dict[str, list[int]]] = {}  # of the steps to come: what packs hold for them
        self._keep, self._confirm = keep, confirm
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._writing = self._folder  # the folder that is being written, by its last name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear_unfinished()
        if jax.process_count() > 1:
            if not is_reached(self._folder):
                raise UserError(
                    f"'{workdir}' takes steps from one process alone, and this run has {jax.process_count()}; set "
                    "--config.workdir to a gs:// bucket or to a disk that all hosts share."
                )
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
        self.wait()
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
        self.wait()
        self._writing = self._folder / str(step)
        try:
            if is_first():
                self._begin(step)
            response = save(self._folder / str(step), parameters, optimizer, progress)
        except Exception as error:
            raise self._not_written(error) from error
        self._saving = self._background.submit(self._finish, step, response)

    def check(self) -> None:
        """Notice early that a step could not be written, without waiting for one that is being written.

        Raises:
            UserError: it could not.
        """
        if self._saving is not None and self._saving.done():
            self.wait()

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
            self.wait()
        finally:
            self._background.shutdown()

    def _begin(self, step: int) -> None:
        """Say that a step is unfinished, whatever there is of it."""
        self._mark(step).write_bytes(b"")
        settle(self._mark(step))
        settle(self._folder)

    def _mark(self, step: int) -> Path:
        return self._folder / f"{step}{UNFINISHED}"

    def _drop(self, step: int) -> None:
        """Delete a step; its checksums first, so that nobody takes a half for the whole."""
        remove(self._folder / str(step) / CHECKSUMS_FILE)
        remove(self._folder / str(step))
        remove(self._mark(step))

    def wait(self) -> None:
        """Go on when what is being saved is on disk.

        Raises:
            UserError: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except UserError:
            raise
        except Exception as error:  # orbax's, of many types
            raise self._not_written(error) from error

    def _not_written(self, error: Exception) -> UserError:
        if is_outage(error):
            return UserError(outage_sentence(error))
        before = max(finished_steps(self._folder), default=None)
        self._clear_unfinished()  # a full disk needs the room
        goes_on = "from the beginning" if before is None else f"from step {before}"
        return UserError(
            f"checkpoint '{self._writing}' could not be written ({shortened(error)}); "
            f"mend that, such as a full disk, and start again: the run goes on {goes_on}."
        )

    def _clear_unfinished(self) -> None:
        if not is_first():
            return
        steps = finished_steps(self._folder)
        for path in children(self._folder):
            name, unfinished, _ = path.name.partition(UNFINISHED)
            if unfinished and name.isdecimal() and int(name) not in steps:
                self._drop(int(name))
            if unfinished:  # the mark; or a step itself, as it was named once
                remove(path)
        for pack in packs_in(self._packs):
            if not (pack / CHECKSUMS_FILE).exists():
                remove(pack)

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
            self._confirm()
            (pack / ARRAYS_FILE).write_text(json.dumps(arrays, indent=1) + "\n")
            write_checksums(pack)
            settle(self._packs)

    def _finish(self, step: int, response: Any) -> None:
        """In the background: when all processes have written their parts, the first one checks, and says so last."""
        response.result()
        if not is_first():
            return
        folder = self._folder / str(step)
        if self._reference:
            reference = {pack.name: shapes for pack, shapes in self._reference.items()}
            (folder / REFERENCE_FILE).write_text(json.dumps(reference, indent=1) + "\n")
        write_checksums(folder, self._confirm)
        remove(self._mark(step))
        settle(self._folder)
        tqdm.write(f"saved {self._named / str(step)}")
        steps = finished_steps(self._folder)
        newest = steps[-self._keep :]
        best = best_steps(self._named.parent, newest)  # of each: if the newest is damaged, the one before counts
        for old in sorted({*steps} - {*newest} - best):
            self._begin(old)
            self._drop(old)
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
        remove(pack / CHECKSUMS_FILE)  # so that nobody takes a half for the whole
        remove(pack)


def _refuse_folders_of_their_own(folder: Path) -> None:
    number = int(broadcast_one_to_all(np.int32(int.from_bytes(os.urandom(4)) >> 1)))
    token = folder / f"{number}{UNFINISHED}"
    if is_first():
        token.touch()
    process_allgather(np.int32(0))  # wait for it
    seen = process_allgather(np.int32(token.exists()))
    if is_first():
        remove(token)
    if not seen.all():
        raise UserError(f"'{folder}' is not the same folder for all processes; set --config.workdir to a shared disk.")
