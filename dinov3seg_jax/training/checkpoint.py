"""Writing checkpoints: `<workdir>/checkpoints/<step>`, whole or not at all; and going on from the newest.

A step holds "parameters" (all of them, as nested dicts of arrays), "optimizer", "progress" (where the data stream is,
and the seconds trained) and checksums. It is written under another name, and gets its own when its files were read
back and the checksums are there: so a folder whose name is a number was whole once, and one that no longer matches its
checksums is damaged. docs/checkpoints.md says what happens then.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable
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
from dinov3seg_jax.store.arrays import read_step, save, shortened
from dinov3seg_jax.store.checksums import settle, write_checksums
from dinov3seg_jax.store.evaluations import best_steps
from dinov3seg_jax.store.run import STEPS_FOLDER, finished_steps, newest_whole

UNFINISHED = ".unfinished"  # ends, or goes on, in the names of what is being written or deleted


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
            keep: how many of the newest steps stay, beside the best one.

        Raises:
            UserError: processes on other hosts do not see the same folder.
        """
        self._named = workdir / STEPS_FOLDER  # as the user says it
        self._folder = self._named.resolve()
        self._keep = keep
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._saving_step = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        if is_first():
            _remove(self._folder.glob(f"*{UNFINISHED}*"))
        if jax.process_count() > 1:
            _refuse_folders_of_their_own(self._folder)

    def save(self, step: int, parameters: Parameters, optimizer: Any, progress: dict[str, Any]) -> None:
        """Write a step in the background, after the one before; `close` waits for it.

        Raises:
            UserError: this step or the one before cannot be written.
        """
        self._wait()
        self._saving_step = step
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

    def restore(self, parameters: AbstractParameters, optimizer: Any) -> Restored | None:
        """Load the newest step that is whole onto the given shapes and shardings; None where there is no step at all.

        Steps that are newer and damaged are put aside, under names that end in ".damaged".

        Raises:
            UserError: no step is whole, or the newest that is belongs to another model.
        """
        step = newest_whole(self._folder, put_aside=True)
        if step is None:
            return None
        return Restored(step, *read_step(self._folder / str(step), parameters, optimizer))

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
        if is_first():
            _remove(self._folder.glob(f"{step}{UNFINISHED}*"))  # a full disk needs the room
        goes_on = "from the beginning" if before is None else f"from step {before}"
        return UserError(
            f"checkpoint '{self._folder / str(step)}' could not be written ({shortened(error)}); "
            f"mend that, such as a full disk, and start again: the run goes on {goes_on}."
        )

    def _finish(self, step: int, response: Any) -> None:
        """In the background: when all processes have written their parts, the first one checks and names the step."""
        response.result()
        if not is_first():
            return
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
