"""What lies in folders, on a disk or in a bucket, which has no folders: only objects whose names begin alike."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import cast

from dinov3seg_jax.places import in_bucket, is_remote, put


def children(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of names; of one that is not there, nothing."""
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(folder: Path, keep: bool = False) -> dict[str, Path]:
    """All files of a folder and of the folders in it, by their names in it, which have "/" between their parts, sorted.

    Of a bucket, by one request for a thousand.

    Args:
        folder: where they lie; of one that is not there, there are none.
        keep: whether `places.content_of` one of a bucket is kept in the cache.
    """
    if is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            return cast("dict[str, Path]", in_bucket(folder).files(keep))
        return {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def fetch(folder: Path, to: Path) -> None:
    """Copy a folder of a bucket to this machine."""
    in_bucket(folder).fetch(files_below(folder), to)


def copy_tree(local: Path, remote: Path, last: str = "") -> None:
    """Write the files of a folder below a path in a bucket, each whole or not at all.

    Args:
        local: folder.
        remote: where its files go.
        last: the file that says that all others are there; it is written after them.

    Raises:
        OSError: one of them cannot be written.
    """
    files = files_below(local)
    for name in sorted(files, key=lambda name: name == last):
        put(files[name], remote / name)


def create(path: Path, content: bytes) -> None:
    """Write a file that must not be there yet; of several that do so at once, one succeeds.

    Raises:
        FileExistsError: it is there.
    """
    if is_remote(path):
        in_bucket(path).create(content)
        return
    with path.open("xb") as file:
        file.write(content)


def remove(path: Path) -> None:
    """Delete a file, or a folder and what is in it, unless it is gone."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            in_bucket(path).remove()
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def move(folder: Path, to: Path) -> None:
    """Give a folder another name; in a bucket by copies, all of which are there before the first original goes."""
    if is_remote(folder):
        for name, path in files_below(folder).items():
            in_bucket(path).copy_to(in_bucket(to / name))
        remove(folder)
    else:
        os.rename(folder, to)


def settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut; some network disks do not do folders.

    An object of a bucket does as soon as it is there.
    """
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def settle_all(folder: Path) -> None:
    """The same of all that is in a folder, and of the folder."""
    if not is_remote(folder):
        for path in (*folder.rglob("*"), folder):
            settle(path)
