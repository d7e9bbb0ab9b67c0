"""One start of a run at a time: `<workdir>/lease.N`, which the start that trains renews.

A lease says who has it, and when that one last showed that it lives. Another start watches it for a while: if it is
renewed, that start is refused; if not, its owner has died, and the next number is taken. Only one can create a file of
a number, on a disk and in a bucket, and the highest number has the run: who finds a higher one than its own stops
before it makes a step whole. No clocks are compared, which differ between hosts.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov3seg_jax.errors import UserError, note
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.folders import children, create, remove
from dinov3seg_jax.processes import check_once, is_first
from dinov3seg_jax.scratch import has_ended

PREFIX = "lease."
RENEWED = 15.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which the owner counts as dead
LOOKS = 1.0  # seconds between two looks at another's


@contextlib.contextmanager
def leased(workdir: Path) -> Iterator["Lease"]:
    """Have a run for as long as the block takes; all of its processes call this together, and the first has it.

    Raises:
        UserError: another start has it.
    """
    lease = Lease(workdir)
    check_once(lease.take)
    try:
        yield lease
    finally:
        lease.release()


class Lease:
    """Of one run."""

    def __init__(self, workdir: Path):
        """Take nothing yet."""
        self._workdir, self._number = workdir, 0
        self._owner = {"host": socket.gethostname(), "process": os.getpid(), "machine": _machine()}
        self._over = threading.Event()
        self._renewing: threading.Thread | None = None

    def take(self) -> None:
        """Have the run, if need be after watching whether its last owner lives.

        Raises:
            UserError: another start has it, or is quicker.
        """
        self._workdir.mkdir(parents=True, exist_ok=True)
        while highest := max(self._numbers(), default=0):
            if self._has_died(highest):
                break
        try:
            create(self._path(highest + 1), self._sign_of_life())
        except FileExistsError:
            raise self._taken(highest + 1) from None
        self._number = highest + 1
        self.confirm()
        for number in self._numbers():
            if number < self._number:
                remove(self._path(number))
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewing.start()

    def confirm(self) -> None:
        """Make sure that the run is still this start's.

        Raises:
            UserError: another start has taken it, as this one showed no sign of life for too long.
        """
        higher = [number for number in self._numbers() if number > self._number]
        if higher and is_first():
            raise self._taken(max(higher))

    def release(self) -> None:
        """Let the run go; if a bucket does not answer, the next start finds out by itself that nobody has it."""
        self._over.set()
        if self._renewing is not None:
            self._renewing.join()
            with contextlib.suppress(Exception):
                remove(self._path(self._number))

    def _numbers(self) -> list[int]:
        names = (path.name.removeprefix(PREFIX) for path in children(self._workdir) if path.name.startswith(PREFIX))
        return [int(name) for name in names if name.isdecimal()]

    def _path(self, number: int) -> Path:
        return self._workdir / f"{PREFIX}{number}"

    def _sign_of_life(self) -> bytes:
        return (json.dumps(self._owner | {"time": time.time()}) + "\n").encode()

    def _renew(self) -> None:
        while not self._over.wait(RENEWED):
            with contextlib.suppress(Exception):  # a bucket that does not answer may in a moment
                write_whole(self._path(self._number), self._sign_of_life())

    def _has_died(self, number: int) -> bool:
        """Watch another's lease until it has not been renewed for too long; False where it has been let go.

        Raises:
            UserError: it is renewed.
        """
        first = self._read(number)
        owner = _owner_of(first)
        if owner.get("machine") == self._owner["machine"] and has_ended(int(owner.get("process", 0))):
            return True
        note(
            f"'{self._workdir}' may be trained by {_named(owner)}; waiting up to {STALE:.0f} seconds to see whether "
            "that one lives"
        )
        end = time.monotonic() + STALE
        while time.monotonic() < end:
            time.sleep(LOOKS)
            found = self._read(number)
            if found is None:
                return False
            if found != first:
                raise self._taken(number)
        return True

    def _read(self, number: int) -> bytes | None:
        try:
            return self._path(number).read_bytes()
        except FileNotFoundError:
            return None

    def _taken(self, number: int) -> UserError:
        return UserError(
            f"'{self._workdir}' is being trained by {_named(_owner_of(self._read(number)))}; wait until that ends, or "
            f"end it: {STALE:.0f} seconds later the run can be started again."
        )


def _owner_of(content: bytes | None) -> dict[str, Any]:
    try:
        return dict(json.loads(content or b"{}"))
    except (ValueError, TypeError):
        return {}


def _named(owner: dict[str, Any]) -> str:
    return (
        f"process {owner['process']} on {owner['host']}" if {"process", "host"} <= owner.keys() else "another process"
    )


def _machine() -> str:
    """Tells where numbers of processes mean the same: this start of this machine, and this container."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{booted} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"
