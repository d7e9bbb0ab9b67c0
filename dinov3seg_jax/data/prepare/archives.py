"""What archives and folders hold, listed once and then read file by file, in any order and by any process.

Zips and plain tars are read in place. A compressed tar, which cannot be, is uncompressed once into a scratch folder.
"""

import functools
import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dinov3seg_jax.errors import UserError, reason

PICTURE_BYTES = 2**28  # far above any official picture or label file
INDEX_BYTES = 2**32  # of a list or a JSON file
UNPACKED_BYTES = 2**36  # of a compressed tar
LOOSE_SUFFIXES = (".json", ".txt")
GZIP_START = b"\x1f\x8b"

_DAMAGED = (
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    RuntimeError,  # of encrypted members
    NotImplementedError,  # of compressions nobody uses
)


@dataclass(frozen=True)
class Member:
    """One file in a source."""

    source: str  # as the user named it, for messages
    file: Path  # the archive that holds it, or the folder above it
    name: str  # its path there, with forward slashes
    size: int  # bytes, as the archive declares
    offset: int = -1  # in a tar: where its bytes begin

    def __str__(self) -> str:
        return f"'{self.name}' in '{self.source}'"


def list_members(sources: Sequence[Path], scratch: Path) -> list[Member]:
    """Every file of some sources but hidden ones; nothing is read but indices.

    Args:
        sources: .zip, .tar and .tar.gz archives, folders, and single .json or .txt files.
        scratch: an existing folder, for what has to be uncompressed; it must stay until the last member is read.

    Raises:
        UserError: A source is missing, truncated or no archive, or a member's name leads out of the archive.
        OSError: `scratch` cannot be written.
    """
    _open_zip.cache_clear()  # a file may have been replaced since
    members: list[Member] = []
    for index, path in enumerate(sources):
        members += [member for member in _list_source(path, scratch / f"{index}.tar") if not _is_hidden(member.name)]
    return members


def read_member(member: Member, limit: int = PICTURE_BYTES) -> bytes:
    """The whole content of one file, checked against the archive's checksum where it has one.

    Raises:
        UserError: It is missing or damaged, or larger than `limit` bytes.
    """
    if member.size > limit:
        raise UserError(f"{member} claims {member.size:,} bytes, which no such file has; get the official one.")
    try:
        if member.offset >= 0:
            with member.file.open("rb") as archive:
                archive.seek(member.offset)
                content = archive.read(member.size)
        elif member.file.is_dir():
            content = (member.file / member.name).read_bytes()
        else:
            content = _open_zip(member.file).read(member.name)
    except (*_DAMAGED, KeyError, OSError) as error:
        raise UserError(f"{member} cannot be read ({reason(error)}); get it again.") from None
    if len(content) != member.size:
        raise UserError(f"{member} is cut short; get it again.")
    return content


def file_on_disk(member: Member) -> Path | None:
    """The file itself, if it is in no archive."""
    return (member.file / member.name).resolve() if member.file.is_dir() else None


def _list_source(path: Path, scratch: Path) -> list[Member]:
    shown = str(path)
    if path.is_dir():
        return _list_folder(path, shown)
    if not path.is_file():
        raise UserError(f"the source '{path}' does not exist; check the path.")
    if path.suffix in LOOSE_SUFFIXES:
        return [Member(shown, path.parent, path.name, path.stat().st_size)]
    try:
        if zipfile.is_zipfile(path):
            return _list_zip(path, shown)
        with path.open("rb") as file:
            compressed = file.read(len(GZIP_START)) == GZIP_START
        return _list_tar(_uncompress(path, scratch) if compressed else path, shown)
    except _DAMAGED as error:
        raise UserError(
            f"the source '{path}' is no whole .zip, .tar or .tar.gz archive ({reason(error)}); download it again."
        ) from None


def _list_folder(folder: Path, shown: str) -> list[Member]:
    members = []
    for top, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(top, name)
            if path.is_file():
                members.append(Member(shown, folder, path.relative_to(folder).as_posix(), path.stat().st_size))
    return members


def _list_zip(path: Path, shown: str) -> list[Member]:
    entries = [entry for entry in _open_zip(path).infolist() if not entry.is_dir()]
    return [Member(shown, path, _safe(entry.filename, shown), entry.file_size) for entry in entries]


def _list_tar(path: Path, shown: str) -> list[Member]:
    with tarfile.open(path, "r:") as tar:
        return [
            Member(shown, path, _safe(entry.name, shown), entry.size, entry.offset_data)
            for entry in tar
            if entry.isreg() and not entry.issparse()
        ]


def _uncompress(path: Path, target: Path) -> Path:
    with gzip.open(path) as packed, target.open("wb") as file:
        while block := packed.read(2**22):
            file.write(block)
            if file.tell() > UNPACKED_BYTES:
                raise UserError(
                    f"the source '{path}' has no end within {UNPACKED_BYTES:,} bytes; get the official one."
                )
    return target


@functools.lru_cache(maxsize=8)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Kept open: the index of a large archive takes a second to read."""
    return zipfile.ZipFile(path)


def _safe(name: str, shown: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"'{shown}' holds '{name}', which leads out of the archive; get the official one.")
    return name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
