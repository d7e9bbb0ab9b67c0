"""Stopping on a signal: the step at hand is finished and saved, and the run goes on when it is started again."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal ended the run, and everything up to then is saved; the status is 128 + the signal, as in a shell."""

    def __init__(self, received: int):
        """`received`: SIGTERM is 143, Ctrl-C 130."""
        super().__init__(128 + received)


class StopSignals:
    """Listens for SIGTERM and Ctrl-C; the second signal stops at once. Of several processes, one that hears is enough.

    Before `listen` and after `close` a signal ends the process at once, which then loses nothing.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None  # of several processes, by all of them at the same question
        self._asked = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin. A process that is part of a run of several leaves SIGTERM to JAX, which tells the others."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python gives signals to the main thread alone
        together = jax.distributed.is_initialized()
        for number in SIGNALS:
            if number == signal.SIGINT or not together:
                self._before[number] = signal.signal(number, self._hand_on if together else self._note)

    def received(self) -> signal.Signals | None:
        """The signal after which to save and stop; ask after every step, and more often in what takes longer.

        All processes ask equally often, and agree on the question from which on the answer is the signal.
        """
        self._asked += 1
        if jax.distributed.is_initialized() and reached_preemption_sync_point(self._asked):
            self.noted = signal.SIGTERM
        return self.noted

    def close(self) -> None:
        """Put back what was there before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = signal.Signals(number)
        self.close()

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.close()
        signal.raise_signal(signal.SIGTERM)
