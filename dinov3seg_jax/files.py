"""Writing files so that nobody ever meets half of one, under temporary names that end in the process's number.

Which is how the next run tells what a killed one left behind from what another is writing; no library names files so.
"""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from dinov3seg_jax.places import is_remote, place, put
from dinov3seg_jax.scratch import has_ended, scratch

EXPORT_FILE = "export.json"  # what an exported model says of itself, and is known by


def expanded(path: str | Path) -> Path:
    """A path as a person gives it: the one door where that is read; see `place`, which says what is wrong with it."""
    return place(path)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step; an interruption leaves the old one, or none."""
    if is_remote(path):
        path.write_bytes(content)  # one put
        return
    with appearing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary path for a file that is written piece by piece; at the end it takes its place in one step."""
    remote = is_remote(path)
    temporary = scratch() / path.name if remote else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        put(temporary, path) if remote else os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, known: Collection[str] | None = None) -> None:
    """Delete from a folder what processes that have ended left of files with known names; None: of any."""
    if is_remote(folder):  # where files appear by one put
        return
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            name, _, process = entry.name.removeprefix(".").rpartition(".")
            ours = entry.name.startswith(".") and (known is None or name in known)
            if ours and process.isdecimal() and has_ended(int(process)):
                Path(entry.path).unlink(missing_ok=True)


def stamp(path: Path) -> tuple[str, int, int]:
    """What tells a file from what it was: its name, size and time of change; whoever reads a missing one says so."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns
