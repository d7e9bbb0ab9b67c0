"""The .safetensors format: a length, a header in JSON, then the arrays' bytes. Reading it runs no code.

Every number of a header is checked against the file before anything is read or allocated by it. The safetensors
library would do, but for three things: here a file is written one slice at a time, so that a conversion never holds a
model; each device reads its own slice of an array; and a damaged file is one sentence that names what is wrong.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from dinov3seg_jax.errors import UserError

LENGTH_BYTES = 8
HEADER_LIMIT = 100 * 2**20  # that of the original library
ALIGNMENT = 64
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # PyTorch's files, new and old

FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
OTHERS: dict[str, Any] = {
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
DTYPES = {name: np.dtype(kind) for name, kind in (FLOATS | OTHERS).items()}


class Entry(NamedTuple):
    """Where one array lies."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # byte of the file

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, Entry]:
    """What a file holds.

    Raises:
        UserError: it is missing, of another format, damaged or truncated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(LENGTH_BYTES)
            if begin.startswith(PICKLE_STARTS):
                raise UserError(f"'{path}' is a PyTorch file under another name; rename it to end in .pth.")
            length = int.from_bytes(begin, "little")
            if length > min(size - LENGTH_BYTES, HEADER_LIMIT):
                raise _damaged(path, f"it declares a header of {length} bytes in a file of {size}")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); check the path.") from None
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles)
        header.pop("__metadata__", None)
        entries = {key: _entry(value, LENGTH_BYTES + length) for key, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read: {type(error).__name__}") from None
    end = LENGTH_BYTES + length
    for key, (entry, stop) in sorted(entries.items(), key=lambda item: item[1][0].start):
        if entry.start != end or stop != entry.start + entry.size:
            raise _damaged(path, f"tensor '{key}' is not where its shape {list(entry.shape)} says")
        end = stop
    if end != size:
        raise _damaged(path, f"its tensors need {end} bytes and it has {size}")
    return {key: entry for key, (entry, _) in entries.items()}


def read_tensor(path: Path, entry: Entry) -> np.ndarray:
    """One array, in memory of its own."""
    return np.fromfile(path, entry.dtype, math.prod(entry.shape), offset=entry.start).reshape(entry.shape)


def map_tensor(path: Path, entry: Entry) -> np.ndarray:
    """One array, of which only what is touched is read; it must not outlive the file."""
    if not entry.size:
        return np.zeros(entry.shape, entry.dtype)
    return np.memmap(path, entry.dtype, "r", entry.start, entry.shape)


def create(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Entry]:
    """Write the header of a file of float32 arrays and reserve its full size, to be filled by `write_part`."""
    dtype, offset, header = np.dtype(np.float32), 0, {}
    for name in sorted(shapes):
        size = math.prod(shapes[name]) * dtype.itemsize
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        file.truncate(file.tell() + offset)
    return read_header(path)


def write_part(file: BinaryIO, entry: Entry, position: int | None, values: np.ndarray) -> None:
    """Put an array, or the slice at `position` of its first axis, into its place.

    Raises:
        ValueError: `values` has another shape than the place.
    """
    shape = entry.shape if position is None else entry.shape[1:]
    if values.shape != shape:
        raise ValueError(f"{values.shape} does not fit {shape}")
    file.seek(entry.start + (position or 0) * math.prod(shape) * entry.dtype.itemsize)
    file.write(np.ascontiguousarray(values, entry.dtype).data)


def blocks(path: Path, entry: Entry, size: int = 2**24) -> Iterator[bytes]:
    """The bytes of one array, a few at a time."""
    with path.open("rb") as file:
        file.seek(entry.start)
        for start in range(0, entry.size, size):
            yield file.read(min(size, entry.size - start))


def _entry(value: Any, data: int) -> tuple[Entry, int]:
    """An entry and the byte it ends before, as the header has them."""
    start, stop = value["data_offsets"]
    shape = tuple(value["shape"])
    if any(type(number) is not int or number < 0 for number in (start, stop, *shape)):
        raise ValueError
    return Entry(DTYPES[value["dtype"]], shape, data + start), data + stop


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"'{path}' is damaged or no .safetensors file ({reason}); get it again.")
