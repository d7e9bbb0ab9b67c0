"""A path in a bucket: universal-pathlib's, which says what went wrong the way the operating system does.

The only module that knows the libraries for buckets; `places` loads it when a URL is named.
"""

import contextlib
import errno
import io
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import fsspec
from fsspec.asyn import sync
from upath._stat import UPathStatResult
from upath.implementations.cloud import CloudPath

from dinov3seg_jax.errors import UserError, one_line

PATIENCE_SECONDS = 20  # for a bucket's first answer; the libraries' own retries take up to half an hour
PATIENT = {"mode": "standard", "max_attempts": 10}  # a busy bucket is asked again for about a minute, not 7 seconds
# gcsfs would take "#1" and "?generation=1" at the end of a URL for a version of the file, not for a part of its name.
NAMES_AS_THEY_ARE: dict[str, dict[str, bool]] = {"gs": {"version_aware": False}, "s3": {}}
READ_AHEAD = 2**20  # bytes; s3fs would fetch 50 MB for the first bytes of a file
# Of a whole file: else s3fs asks for its size first, and takes the parts of a large one from whatever it is by then.
ONE_REQUEST: dict[str, dict[str, int]] = {"gs": {}, "s3": {"max_concurrency": 1}}
LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "google", "gcsfs", "requests", "s3fs"}  # with errors of their own
LOGIN = {
    "gs": "run: gcloud auth application-default login",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run: aws configure",
}


class Listed(NamedTuple):
    """What a listing said of a file."""

    st_size: int
    st_mtime_ns: int
    version: str  # which changes when the file does
    keep: bool  # whether what is read of it is kept in the cache
    st_mode: int = stat.S_IFREG


class BucketPath(CloudPath):
    """One with `pathlib.Path`'s methods; folders are where files are, and need not be made.

    Whatever goes wrong is an `OSError` with the URL as its `filename`; "not there" is `FileNotFoundError`, and never
    the answer of a bucket that could not be asked.
    """

    __slots__ = ("listed",)

    listed: Listed | None  # of a path that `files` found

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Without a look at the registry of paths, which other code of this process may use too."""
        path = object.__new__(cls)
        path.listed = None
        return path

    def __reduce__(self) -> Any:
        """What it is made from, and what was listed of it, for other processes."""
        return _remade, (*super().__reduce__(), self.listed)

    def __fspath__(self) -> NoReturn:
        """What asks for this can open files of this machine only."""
        raise UserError(f"{self} is in a bucket, and this works with files on this machine only; copy it there first")

    @property
    def fs(self) -> Any:
        """The file system, which is another one in a process that was forked from this one."""
        return fsspec.filesystem(self.protocol, **self.storage_options)

    def exists(self, **_: Any) -> bool:
        return bool(self._kind())

    def is_dir(self, **_: Any) -> bool:
        return self._kind() == "directory"

    def is_file(self, **_: Any) -> bool:
        return self._kind() == "file"

    def _kind(self) -> str:
        try:
            with self._as_os_errors():
                return str(self.fs.info(self.path)["type"])
        except FileNotFoundError:
            return ""

    def stat(self, **_: Any) -> Any:
        """As it was listed, if it was."""
        if self.listed is not None:
            return self.listed
        with self._as_os_errors():
            return super().stat()

    def iterdir(self) -> Iterator[Self]:
        with self._as_os_errors():
            names = self.fs.ls(self.path, detail=False)
        return iter([self / name.rstrip("/").rpartition("/")[2] for name in names])

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing to do."""

    def open(self, mode: str = "r", *args: Any, **options: Any) -> Any:
        with self._as_os_errors():
            if "r" not in mode:
                return super().open(mode, *args, **options)
            opened = io.BufferedReader(_Reading(self, self.fs.open(self.path, "rb", block_size=READ_AHEAD)))
        return opened if "b" in mode else io.TextIOWrapper(opened, options.get("encoding") or "utf-8")

    def read_bytes(self) -> bytes:
        with self._as_os_errors():
            return bytes(self.fs.cat_file(self.path, **ONE_REQUEST[self.protocol]))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return io.StringIO(self.read_bytes().decode(encoding or "utf-8", errors or "strict"), newline).read()

    def write_bytes(self, data: Any) -> int:
        """Whole, or not at all."""
        with self._as_os_errors():
            self.fs.pipe_file(self.path, bytes(data))
        return len(data)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext(), self._as_os_errors():
            self.fs.rm_file(self.path)

    def glob(self, pattern: str, **_: Any) -> Iterator[Self]:
        with self._as_os_errors():
            return iter(list(super().glob(pattern)))

    def rglob(self, pattern: str, **_: Any) -> Iterator[Self]:
        with self._as_os_errors():
            return iter(list(super().rglob(pattern)))

    def files(self, keep: bool = False) -> dict[str, Self]:
        """All files below by their names there, or the file itself under the name "": one request for a thousand.

        Args:
            keep: whether what is read of them is kept in the cache.

        Raises:
            OSError: there is none, or the bucket cannot be asked.
        """
        with self._as_os_errors():
            found = self.fs.find(self.path, detail=True)
        names = {path[len(self.path) :].lstrip("/"): about for path, about in found.items()}
        files = {
            name: self / name if name else self.with_segments(self.path)
            for name in sorted(names)
            if not name.endswith("/")
        }
        if not files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        for name, path in files.items():
            changed = UPathStatResult.from_info(names[name]).st_mtime_ns
            path.listed = Listed(int(names[name]["size"]), changed, _version(names[name]), keep)
        return files

    def fetch(self, names: Iterable[str], into: Path) -> None:
        """Copy files below (or "", the file itself) to a folder (or file) of this machine, whole or not at all."""
        places = {name: into / name for name in names}
        halves = {name: place.with_name(f".{place.name}.{os.getpid()}") for name, place in places.items()}
        try:
            for place in places.values():
                place.parent.mkdir(parents=True, exist_ok=True)
            with self._as_os_errors():
                self.fs.get([(self / name).path for name in names], [str(half) for half in halves.values()])
            for name, place in places.items():
                os.replace(halves[name], place)
        finally:
            for half in halves.values():
                half.unlink(missing_ok=True)

    def put(self, local: Path) -> None:
        """Write a file of this machine here, whole or not at all."""
        with self._as_os_errors():
            self.fs.put_file(str(local), self.path)

    def create(self, content: bytes) -> None:
        """Write it, unless it is there; of several that do so at once, one succeeds.

        Raises:
            FileExistsError: it is there.
        """
        with self._as_os_errors():
            self.fs.pipe_file(self.path, content, mode="create")

    def remove(self) -> None:
        """Delete it and all below.

        Raises:
            FileNotFoundError: there is nothing.
        """
        with self._as_os_errors():
            self.fs.rm(self.path, recursive=True)

    def copy_to(self, other: Self) -> None:
        """Copy it to another path in the same bucket, within the service."""
        with self._as_os_errors():
            self.fs.cp_file(self.path, other.path)

    @contextlib.contextmanager
    def _as_os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self)) from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
            if error.filename is not None and type(error).__module__ == "builtins":
                raise  # a file of this machine
            denied = isinstance(error, PermissionError) or str(error).startswith("Forbidden")  # gcsfs's word
            number = errno.EACCES if denied else errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EIO
            raise OSError(number, one_line(error.strerror or error, 300), str(self)) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in LIBRARIES:
                raise
            raise OSError(errno.EIO, one_line(error, 300) or type(error).__name__, str(self)) from error


class _Reading(io.RawIOBase):
    """A file that is open for reading, whose errors are those of its path."""

    def __init__(self, path: BucketPath, file: Any):
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._path._as_os_errors():
            found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bucket(url: str, scheme: str) -> BucketPath:
    """A path whose bucket is there and may be read.

    Raises:
        UserError: it is not, or does not answer.
        ImportError: what reads such URLs is not installed.
    """
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints what it raises
    patience = {} if scheme == "gs" or "AWS_MAX_ATTEMPTS" in os.environ else {"config_kwargs": {"retries": PATIENT}}
    short = url.rstrip("/")
    url = url if short.endswith(":") else short  # as pathlib has it; gcsfs keeps the slash
    path = BucketPath(url, protocol=scheme, use_listings_cache=False, **NAMES_AS_THEY_ARE[scheme], **patience)
    bucket, files = path.parts[0].strip("/"), path.fs
    if not bucket:
        raise UserError(f"{url} names no bucket; write {scheme}://bucket/folder")
    try:
        with path._as_os_errors():
            try:
                sync(files.loop, files._info, path.path, timeout=PATIENCE_SECONDS)
            except FileNotFoundError:
                sync(files.loop, files._info, bucket, timeout=PATIENCE_SECONDS)
    except FileNotFoundError as error:
        raise UserError(f"there is no bucket {scheme}://{bucket}; check its name, or make it") from error
    except PermissionError as error:
        raise UserError(
            f"{url} may not be read ({error.strerror}); use credentials that may list and read it, or {LOGIN[scheme]}"
        ) from error
    except TimeoutError as error:
        raise UserError(
            f"{url} does not answer within {PATIENCE_SECONDS} seconds; check the network and the service's address"
        ) from error
    except OSError as error:
        said = error.strerror or ""
        mend = LOGIN[scheme] if _wants_login(error) else "check the network and the service's address"
        raise UserError(f"{url} cannot be read ({said}); {mend}") from error
    return path


def _wants_login(error: BaseException) -> bool:
    said = f"{type(error.__cause__).__name__} {error}".lower()
    return any(word in said for word in ("credential", "anonymous", "unauthorized", "401", "refresherror"))


def _remade(make: Any, arguments: Any, listed: Listed | None) -> BucketPath:
    path: BucketPath = make(*arguments)
    path.listed = listed
    return path


def _version(about: dict[str, Any]) -> str:
    mark = about.get("generation") or about.get("ETag") or about.get("etag") or about.get("LastModified")
    return f"{about['size']} bytes, {mark}"
