"""Pictures that lie together in one file: a tar, as WebDataset has them, or a table of Parquet."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dinov3seg_jax.data.images import SUFFIXES
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.formats.libraries import needed

TAR, PARQUET = ".tar", ".parquet"
KINDS = (TAR, PARQUET)
PICTURE_COLUMNS = ("image", "picture", "bytes", "content", "data")  # these first, of those that hold bytes
NAME_COLUMNS = ("path", "file_name", "filename", "file", "name", "__key__", "key", "id", "url")
ROWS = 64  # of a table that are in memory together


def is_shard(path: Path) -> bool:
    """Whether a file is one of these, by its ending."""
    return path.suffix.lower() in KINDS


def members(shard: Path) -> Iterator[tuple[str, bytes]]:
    """The pictures of a file, one after the other: a name, with slashes, and the content.

    Args:
        shard: a tar, of which the first picture of each sample is taken (a sample's files have one name up to its first
            dot); or a table with pictures as bytes, and names in a column of `NAME_COLUMNS`, else their numbers.

    Raises:
        UserError: it cannot be read, or has no column of pictures.
        OSError: it cannot be opened.
    """
    with shard.open("rb") as file:
        if shard.suffix.lower() == TAR:
            yield from _of_tar(shard, file)
        else:
            yield from _of_table(shard, file)


def _of_tar(shard: Path, file: Any) -> Iterator[tuple[str, bytes]]:
    last = None
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                stem, _, ending = path.name.partition(".")
                sample = path.with_name(stem) if stem else path
                if member.isfile() and stem and f".{ending.lower()}" in SUFFIXES and sample != last:
                    last = sample
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file
                    yield member.name, content.read()
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shard} is damaged or no tar ({one_line(error, 100)}); copy it again") from error


def _of_table(shard: Path, file: Any) -> Iterator[tuple[str, bytes]]:
    arrow, parquet = (needed(name, "cluster", "a table of pictures") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        table = parquet.ParquetFile(file)
        pictures, names = _columns(shard, arrow, table.schema_arrow)
        number = 0
        for batch in table.iter_batches(ROWS, columns=sorted({pictures, *([names] if names else [])})):
            for row in batch.to_pylist():
                cell = row[pictures]
                content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
                name = (row[names] if names else None) or path or f"{number:08}"
                yield str(name), content or b""
                number += 1
    except arrow.ArrowException as error:
        raise UserError(f"{shard} is damaged or no Parquet ({one_line(error, 100)}); copy it again") from error


def _columns(shard: Path, arrow: Any, schema: Any) -> tuple[str, str | None]:
    """The columns with the pictures and with their names."""

    def holds_bytes(kind: Any) -> bool:
        if arrow.types.is_struct(kind):  # as Hugging Face's `datasets` has pictures
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if not found:
        raise UserError(
            f"{shard} has no column of bytes, which pictures are; its columns are {', '.join(schema.names)}"
        )
    pictures = next((name for name in PICTURE_COLUMNS if name in found), found[0])
    return pictures, next((name for name in NAME_COLUMNS if name in schema.names), None)
