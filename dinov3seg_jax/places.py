"""Where things are: what a person typed as a path, on this machine or in a bucket, and how they get there and back.

A path in a bucket ("gs://bucket/folder", "s3://bucket/folder") has `pathlib.Path`'s methods, but what wants a name that
the operating system knows gets a `UserError` (see `buckets`). Libraries for buckets are loaded when one is named.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, cast
from uuid import uuid4

from dinov3seg_jax.errors import UserError, note, one_line, reason
from dinov3seg_jax.scratch import scratch

if TYPE_CHECKING:
    from dinov3seg_jax.buckets import BucketPath

EXTRAS = {"gs": "gcs", "s3": "s3"}  # of schemes, what has to be installed
VARIABLE = "DINOV3SEG_CACHE"
OFF = "off"
ROOM_LEFT = 10 * 2**30  # bytes of a disk that pieces in the cache leave to others

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def place(text: str | Path) -> Path:
    """A path as a person gives it: on this machine, with "~" for the home folder, or the URL of one in a bucket.

    Raises:
        UserError: there is no such home, or it is no path; or there is no such bucket, it does not answer, or may not
            be read, or what reads it is not installed.
    """
    if is_remote(text):
        return text
    if isinstance(text, str) and (scheme := _URL.match(text)):
        return cast(Path, _opened(text, scheme[1].lower()))  # which has the methods, but not the class
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text} begins with a home folder that is not there; write the whole path") from error
    except TypeError as error:
        raise UserError(f"a path was expected, not a {type(text).__name__}; give a text or a pathlib.Path") from error
    if path.parts and path.parts[0][:-1] in EXTRAS and path.parts[0].endswith(":") and not isinstance(text, str):
        raise UserError(f"{text} lost a slash in pathlib.Path; give what is in a bucket as a text")
    return path


def is_remote(path: object) -> TypeGuard[Path]:
    """Whether what `place` gave is in a bucket."""
    return getattr(path, "protocol", "") in EXTRAS


def cache_folder() -> Path | None:
    """Where what can be had again is kept: in what `DINOV3SEG_CACHE` names, or the user's folder for caches.

    None where the variable says "off".

    Raises:
        UserError: the variable names a URL.
    """
    named = os.environ.get(VARIABLE, "")
    if _URL.match(named):
        raise UserError(f"{VARIABLE} is {named}, but a cache is on this machine; name a folder here, or say {OFF}")
    if named:
        return None if named == OFF else place(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "dinov3seg_jax"
    except RuntimeError:  # a user without a home
        return None


def local_copy(path: Path) -> Path:
    """The same file or folder on this machine: itself, or a copy in the cache, which a note names.

    What was copied before serves again where its size and its ETag or generation are what the bucket says now.

    Raises:
        OSError: it cannot be read, or the copy not be written.
    """
    if not is_remote(path):
        return path
    home = (cache_folder() or _without_cache()) / "copies" / hashlib.sha256(str(path).encode()).hexdigest()[:16]
    copy, record = home / path.name, home / "versions.json"
    listed = {name: file.listed for name, file in in_bucket(path).files().items() if file.listed}
    earlier = _read(record)
    missing = [
        name for name, it in listed.items() if earlier.get(name) != it.version or not _has(copy / name, it.st_size)
    ]
    for name in earlier.keys() - listed.keys():
        (copy / name).unlink(missing_ok=True)
    if missing:
        note(f"{path} is read from a copy on this machine, {copy}")
        in_bucket(path).fetch(missing, copy)
        temporary = record.with_name(f".{record.name}.{os.getpid()}")
        temporary.write_text(json.dumps({name: it.version for name, it in listed.items()}), encoding="utf-8")
        os.replace(temporary, record)
    return copy


def put(local: Path, remote: Path) -> None:
    """Write a file to a path in a bucket, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    in_bucket(remote).put(local)


def check_writable(path: Path) -> None:
    """Find out, before work starts, whether a folder in a bucket can be written; a local one is left to its writer.

    Raises:
        UserError: it cannot.
    """
    if is_remote(path):
        probe = path / f".{uuid4().hex}"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({reason(error)}); use credentials that may write and delete there"
            ) from error


def content_of(path: Path) -> bytes:
    """All bytes of a file in a bucket; of one that was listed to be kept, from the cache where they are there.

    Raises:
        OSError: it cannot be read.
    """
    listed, folder = in_bucket(path).listed, cache_folder()
    if listed is None or not listed.keep or folder is None:
        return path.read_bytes()
    digest = hashlib.sha256(f"{path}, {listed.version}".encode()).hexdigest()
    copy = folder / "pieces" / digest[:2] / digest
    with contextlib.suppress(OSError):
        content = copy.read_bytes()
        if len(content) == listed.st_size:
            return content
    content = path.read_bytes()
    with contextlib.suppress(OSError):  # what cannot be kept is fetched again
        copy.parent.mkdir(parents=True, exist_ok=True)
        if len(content) == listed.st_size and shutil.disk_usage(folder).free > ROOM_LEFT:
            temporary = copy.with_name(f".{copy.name}.{os.getpid()}.{threading.get_ident()}")
            temporary.write_bytes(content)
            os.replace(temporary, copy)
    return content


def in_bucket(path: Path) -> "BucketPath":
    """A path in a bucket, with all that such a one can do."""
    return cast("BucketPath", path)


@functools.lru_cache(maxsize=1000)  # a bucket that was found need not be asked for again
def _opened(url: str, scheme: str) -> "BucketPath":
    if scheme not in EXTRAS:
        known = " or ".join(f"{name}://" for name in EXTRAS)
        raise UserError(f"'{one_line(url, 200)}' is an address of a kind that is not read; name a path, or {known}")
    try:
        from dinov3seg_jax.buckets import open_bucket

        return open_bucket(url, scheme)
    except ImportError as error:
        extra = EXTRAS[scheme]
        raise UserError(
            f"{url} is in a bucket; to use it, install the extra '{extra}': pip install 'dinov3seg_jax[{extra}]'"
        ) from error


@functools.cache
def _without_cache() -> Path:
    return scratch()  # one, so that what was copied serves again


def _has(copy: Path, size: int) -> bool:
    return copy.is_file() and copy.stat().st_size == size


def _read(record: Path) -> dict[str, str]:
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
