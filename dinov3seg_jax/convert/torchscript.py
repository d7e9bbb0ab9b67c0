"""TorchScript archives, such as OpenAI's CLIP: their tensors are read, and their code is neither run nor looked at.

An archive is a zip file. `data.pkl` says which module holds which tensor, and `data/N` is the memory of one. The
pickle is read by a machine of our own that knows the few instructions which such a file needs: it makes dicts, tuples
and descriptions of tensors, and calls nothing. torch is not needed.
"""

import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dinov3seg_jax.errors import UserError

PICKLE_LIMIT = 64 * 2**20  # bytes; that of CLIP L/14 has some hundred thousand
READ_AT_ONCE = 2**20  # bytes
DAMAGE = (zipfile.BadZipFile, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, EOFError)
FLOATS = {
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_LIST": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """What a pickle asks for and plain weights do not need."""


class _Global(str):
    """A name that a pickle would import; here it stays a name."""


class _Module(dict[Any, Any]):
    """A module's attributes."""


class _Storage(NamedTuple):
    kind: str
    entry: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class ArchivedTensor(NamedTuple):
    """One tensor of an archive."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # float32


def is_archive(path: Path) -> bool:
    """Whether a file is a zip with code beside a pickle, as `torch.jit.save` writes them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE:
        return False
    inside = {name.split("/", 1)[-1] for name in names}
    return {"data.pkl", "constants.pkl"} <= inside and any(name.startswith("code/") for name in inside)


def open_archive(path: Path) -> dict[str, ArchivedTensor]:
    """The tensors of a TorchScript archive under the keys of its state dict.

    Raises:
        UserError: it is damaged, or its pickle asks for anything but modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (root,) = {match[1] for name in archive.namelist() if (match := re.fullmatch(r"([^/]*/)data\.pkl", name))}
            order = f"{root}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise _Refused("numbers whose first byte is the highest")
            if archive.getinfo(f"{root}data.pkl").file_size > PICKLE_LIMIT:
                raise _Refused("a pickle of more than 64 MiB")
            found = dict(_tensors(_unpickle(archive.read(f"{root}data.pkl")), "", set()))
            for tensor in found.values():
                _check(tensor, archive.getinfo(f"{root}data/{tensor.storage.entry}"))
    except _Refused as refused:
        raise UserError(
            f"'{path}' holds more than plain weights ({refused}), and nothing in it was run; "
            "use the same weights as .safetensors."
        ) from None
    except DAMAGE as error:
        raise UserError(f"'{path}' is damaged or truncated ({type(error).__name__}); get it again.") from None
    return {key: ArchivedTensor(tensor.shape, _reader(path, root, key, tensor)) for key, tensor in found.items()}


def _unpickle(pickle: bytes) -> Any:
    """What a pickle describes, of dicts, tuples, `_Module` and `_Tensor`."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        above = stack[start:]
        del stack[start:]
        return above

    argument: Any
    for instruction, argument, _ in pickletools.genops(pickle):
        name = instruction.name
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in VALUES:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "SETITEMS":
            items = above_mark()
            _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _expect(stack[-1], dict)[key] = value
        elif name == "APPENDS":
            values = above_mark()
            _expect(stack[-1], list).extend(values)
        elif name == "APPEND":
            value = stack.pop()
            _expect(stack[-1], list).append(value)
        elif name == "NEWOBJ":
            arguments, kind = stack.pop(), stack.pop()
            stack.append(_module(kind, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _expect(stack[-1], _Module).update(_expect(state, dict))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise _Refused(f"its pickle has the instruction {name}")
    raise ValueError("no end")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} for {kind.__name__}")
    return value


def _module(kind: Any, arguments: Any) -> _Module:
    if not re.match("__torch__[. ]", _expect(kind, _Global)):
        raise _Refused(f"it asks for {kind.replace(' ', '.')}")
    if arguments != ():
        raise _Refused(f"it makes {kind.replace(' ', '.')} of something")
    return _Module()


def _storage(identity: Any) -> _Storage:
    what, kind, entry, _, length = identity  # the device it was on does not matter
    if what != "storage":
        raise _Refused("it refers to what is no tensor")
    return _Storage(str(_expect(kind, _Global)), _expect(entry, str), _expect(length, int))


def _called(function: Any, arguments: Any) -> Any:
    """What a call would return, of the few that files of weights have."""
    if _expect(function, _Global) == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, strides, *_ = arguments
        numbers = [offset, *_expect(shape, tuple), *_expect(strides, tuple)]
        if len(shape) != len(strides) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("sizes")
        return _Tensor(_expect(storage, _Storage), offset, shape, strides)
    if function == "collections OrderedDict" and arguments == ():
        return {}
    if function.startswith("torch.jit._pickle build_"):  # a list of numbers or texts
        return arguments
    raise _Refused(f"it asks for {function.replace(' ', '.')}")


def _tensors(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, _Tensor]]:
    """The tensors of a module and those inside it. Which is inside itself, or in two places, is no tree of modules."""
    if id(_expect(module, _Module)) in seen:
        raise _Refused(f"the module '{prefix.removesuffix('.')}' stands in two places")
    seen.add(id(module))
    for key, value in module.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{_expect(key, str)}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{_expect(key, str)}.", seen)


def _check(tensor: _Tensor, entry: zipfile.ZipInfo) -> None:
    """Refuse a tensor that does not lie in its storage, which is in the file as it is."""
    storage = tensor.storage
    reach = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    size = math.prod(tensor.shape)
    if size > storage.length or (size and reach >= storage.length) or entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("a tensor beyond its storage")
    if storage.kind in FLOATS and entry.file_size != storage.length * FLOATS[storage.kind].itemsize:
        raise ValueError("a storage of another size")


def _reader(path: Path, root: str, key: str, tensor: _Tensor) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        storage = tensor.storage
        if storage.kind not in FLOATS:
            raise UserError(f"tensor '{key}' of '{path}' holds {storage.kind}, not floats; use plain weights.")
        dtype = FLOATS[storage.kind]
        try:
            flat = _read_storage(path, f"{root}data/{storage.entry}", np.empty(storage.length, dtype))
        except DAMAGE as error:  # a checksum of the archive's own, too
            raise UserError(f"'{path}' is damaged at '{key}' ({type(error).__name__}); get it again.") from None
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        own = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
        return own.astype(np.float32, copy=False)

    return read


def _read_storage(path: Path, entry: str, flat: np.ndarray) -> np.ndarray:
    """Fill an array from an entry, part by part, so that it is in memory once."""
    whole = flat.view(np.uint8)
    with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
        for start in range(0, len(whole), READ_AT_ONCE):
            part = whole[start : start + READ_AT_ONCE]
            part[:] = np.frombuffer(file.read(len(part)), np.uint8)  # of another length: an error
    return flat
