"""The checksums of a finished step: `checksums.json`, written last, with the size and checksum of every file."""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dinov3seg_jax.files import write_whole

CHECKSUMS_FILE = "checksums.json"
CHUNK = 2**24  # bytes read at a time
READERS = 4  # files read at the same time


def write_checksums(folder: Path) -> None:
    """Read back every file of a folder, see that it is on the disk, and write down its size and CRC-32.

    Raises:
        OSError: a file cannot be read, or the disk cannot keep it.
    """
    paths = _files(folder)
    for path in (*paths, folder, *(inner for inner in folder.rglob("*") if inner.is_dir())):
        settle(path)
    with ThreadPoolExecutor(READERS) as pool:
        files = dict(zip((str(path.relative_to(folder)) for path in paths), pool.map(_describe, paths), strict=True))
    write_whole(folder / CHECKSUMS_FILE, (json.dumps({"files": files}, indent=1) + "\n").encode())
    settle(folder / CHECKSUMS_FILE)
    settle(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has, or should have, checksums, in a few words; None where nothing is."""
    try:
        files = json.loads((folder / CHECKSUMS_FILE).read_bytes())["files"]
        paths = [folder / name for name in files]
    except FileNotFoundError:
        return f"it has no {CHECKSUMS_FILE}"
    except (OSError, ValueError, TypeError, KeyError):  # ValueError: JSON's, or bytes that are no text
        return f"its {CHECKSUMS_FILE} cannot be read"
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(_described_or_reason, paths)
        for (name, expected), actual in zip(files.items(), found, strict=True):
            if isinstance(actual, str):
                return f"{name} {actual}"
            if actual != expected:
                return f"{name} is not what was written ({actual}, not {expected})"
    return None


def settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut; some network disks do not do folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS_FILE)


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
        return f"cannot be read ({error.strerror})"
