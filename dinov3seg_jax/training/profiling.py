"""A recording of chosen steps for XProf or Perfetto: `train.profile_steps`."""

from pathlib import Path
from typing import Any

import jax

from dinov3seg_jax.training.growing import Growing

PROFILE_FOLDER = "profile"


class Profiler:
    """Records every process's own devices in steps first .. first + count - 1, counted from 1; none if count is 0."""

    def __init__(self, workdir: Path, first: int, count: int):
        self._workdir, self._first, self._last = workdir, first, first + count - 1
        self._recording: Growing | None = None

    def before(self, step: int) -> None:
        """To be called before each step; one that is resumed within the range records the rest of it."""
        if self._recording is None and self._first <= step <= self._last:
            self._recording = Growing(self._workdir)
            jax.profiler.start_trace(str(self._recording.folder / PROFILE_FOLDER))

    def after(self, step: int, outputs: Any) -> None:
        """To be called after each step was started; it waits for the outputs of the last one to record."""
        if self._recording is not None and step == self._last:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Write what was recorded of a range that the run did not finish."""
        if self._recording is not None:
            jax.profiler.stop_trace()
            self._recording.close()
            self._recording = None
