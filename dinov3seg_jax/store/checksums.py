"""The checksums of a finished step: `checksums.json`, written last, with the size and checksum of every file."""

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dinov3seg_jax.errors import is_outage, reason
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.folders import files_below, settle, settle_all

CHECKSUMS_FILE = "checksums.json"
CHUNK = 2**24  # bytes read at a time
READERS = 4  # files read at the same time


def write_checksums(folder: Path, confirm: Callable[[], None] = lambda: None) -> None:
    """Read back every file of a folder, see that it is on the disk, and write down its size and CRC-32.

    Args:
        folder: of a step or a pack.
        confirm: asked before they are written; raises where they must not be.

    Raises:
        OSError: a file cannot be read, or the disk cannot keep it.
    """
    paths = _files(folder)
    settle_all(folder)
    with ThreadPoolExecutor(READERS) as pool:
        files = dict(zip(paths, pool.map(_describe, paths.values()), strict=True))
    confirm()
    write_whole(folder / CHECKSUMS_FILE, (json.dumps({"files": files}, indent=1) + "\n").encode())
    settle(folder / CHECKSUMS_FILE)
    settle(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has, or should have, checksums, in a few words; None where nothing is.

    Raises:
        Exception: a bucket does not answer, which says nothing of what is in it.
    """
    try:
        files = json.loads((folder / CHECKSUMS_FILE).read_bytes())["files"]
        paths = [folder / name for name in files]
    except FileNotFoundError:
        return f"it has no {CHECKSUMS_FILE}"
    except (OSError, ValueError, TypeError, KeyError) as error:  # ValueError: JSON's, or bytes that are no text
        if is_outage(error):
            raise
        return f"its {CHECKSUMS_FILE} cannot be read"
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(_described_or_reason, paths)
        for (name, expected), actual in zip(files.items(), found, strict=True):
            if isinstance(actual, str):
                return f"{name} {actual}"
            if actual != expected:
                return f"{name} is not what was written ({actual}, not {expected})"
    return None


def _files(folder: Path) -> dict[str, Path]:
    return {name: path for name, path in files_below(folder).items() if name != CHECKSUMS_FILE}


def _describe(path: Path) -> dict[str, Any]:
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": f"{checksum:08x}"}


def _described_or_reason(path: Path) -> dict[str, Any] | str:
    try:
        return _describe(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        if is_outage(error):
            raise
        return f"cannot be read ({reason(error)})"
