"""Where a run's time goes: steps, waiting for data, and all else."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple


class Interval(NamedTuple):
    """Time between two records, in seconds."""

    steps: float
    data_wait: float  # the part of it spent waiting for data


class Clock:
    """Counts the time of steps: from `start` on, all but what is done `outside`."""

    def __init__(self, steps_before: float, began: float):
        """Go on counting.

        Args:
            steps_before: seconds that steps took in earlier processes of the run, up to where it goes on.
            began: when the run began, in seconds since 1970.
        """
        self._in_steps = steps_before
        self._began = began
        self._start = self._outside = self._waited = 0.0

    def start(self) -> None:
        """What follows are steps."""
        self._start, self._outside, self._waited = time.perf_counter(), 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """What is no step: scoring, saving."""
        before = time.perf_counter()
        yield
        self._outside += time.perf_counter() - before

    def interval(self) -> Interval:
        """The time since the last one, or since `start`."""
        passed = Interval(time.perf_counter() - self._start - self._outside, self._waited)
        self._in_steps += passed.steps
        self.start()
        return passed

    @property
    def in_steps(self) -> float:
        """Seconds that steps took so far, in earlier processes too; to be asked between `start` and the end."""
        return self._in_steps + time.perf_counter() - self._start - self._outside

    @property
    def goodput(self) -> float:
        """The share of the time since the run began that its steps took, 0 to 1.

        Steps that were lost with a process, and done again, count once. So do restarts, compiling, saving, and the
        time that nothing ran.
        """
        return self.in_steps / max(time.time() - self._began, 1e-9)
