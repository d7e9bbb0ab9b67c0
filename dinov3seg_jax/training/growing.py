"""Files of a run that grow while it trains: its log, its curves, recordings of steps.

An object of a bucket cannot grow. So there these files grow on the local disk, and are written to the bucket whole: now
and then, before a step is saved, and at the end. So the records up to a step are there when the step is.
"""

import shutil
import time
from pathlib import Path

from dinov3seg_jax.files import stamp, write_whole
from dinov3seg_jax.folders import files_below
from dinov3seg_jax.places import is_remote
from dinov3seg_jax.scratch import scratch

SECONDS = 30.0  # between two uploads; more where they take long


class Growing:
    """A folder for such files; where the run's is on a disk, that one."""

    def __init__(self, workdir: Path):
        """Begin with nothing in it that the run's folder did not hold."""
        self._workdir = workdir
        self.folder = scratch() if is_remote(workdir) else workdir
        self._kept: dict[str, tuple[str, int, int]] = {}  # what files were when they were uploaded
        self._due = time.monotonic() + SECONDS

    def now_and_then(self) -> None:
        """To be called often."""
        if is_remote(self._workdir) and time.monotonic() >= self._due:
            self.keep()

    def keep(self) -> None:
        """Have all that is in them in the run's folder."""
        if not is_remote(self._workdir):
            return
        began = time.monotonic()
        for name, path in files_below(self.folder).items():
            now = stamp(path)
            if self._kept.get(name) != now:
                write_whole(self._workdir / name, path.read_bytes())
                self._kept[name] = now
        self._due = time.monotonic() + max(SECONDS, 20 * (time.monotonic() - began))

    def close(self) -> None:
        """Keep them a last time."""
        try:
            self.keep()
        finally:
            if is_remote(self._workdir):
                shutil.rmtree(self.folder, ignore_errors=True)
