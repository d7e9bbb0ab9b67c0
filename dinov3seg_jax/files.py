"""Writing files so that nobody ever meets half of one, under temporary names that end in the process's number.

Which is how the next run tells what a killed one left behind from what another is writing; no library names files so.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dinov3seg_jax.errors import UserError

EXPORT_FILE = "export.json"  # what an exported model says of itself, and is known by


def expanded(path: str | Path) -> Path:
    """A path as a person gives it, with "~" for the home folder; the one place where that is read.

    Raises:
        UserError: there is no such home, or it is no path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} begins with a home folder that is not there; write the whole path") from error
    except TypeError as error:
        raise UserError(f"a path was expected, not a {type(path).__name__}; give a text or a pathlib.Path") from error


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step; an interruption leaves the old one, or none."""
    with appearing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary path for a file that is written piece by piece; at the end it takes its place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def stamp(path: Path) -> tuple[str, int, int]:
    """What tells a file from what it was: its name, size and time of change; whoever reads a missing one says so."""
    try:
        stat = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns


def has_ended(process: int) -> bool:
    """Whether no other process has this number, as far as one host can tell."""
    if process == os.getpid():  # which has written nothing yet
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False
