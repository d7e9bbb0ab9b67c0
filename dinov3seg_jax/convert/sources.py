"""Files with official weights, opened without running anything in them; tensors are read one at a time, when asked for.

`.safetensors`, alone or sharded with an index, are read here. `.pth` goes through torch's weights-only loader, which
refuses whatever is not plain data; it is the only thing that torch is needed for.
"""

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded
from dinov3seg_jax.store import safetensors

INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("teacher", "model", "state_dict")  # what a training checkpoint keeps its weights under
HASHED_NAME = re.compile(r"dinov3_\w+-(?P<digits>[0-9a-f]{8})\.pth")  # official files tell the start of their sha256


class Tensor(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """Everything that some files hold together."""

    files: tuple[Path, ...]
    tensors: dict[str, Tensor]
    config: dict[str, Any]  # of a Hugging Face config.json beside the files; empty: there is none
    left_out: tuple[str, ...]  # entries of a training checkpoint that are no weights


def open_source(paths: Sequence[str | Path]) -> Source:
    """Find out what files hold.

    Args:
        paths: .safetensors files, index files, folders with either, or .pth files.

    Raises:
        UserError: a file is missing, damaged, of another format, or more than plain weights; a tensor occurs twice.
    """
    files: list[Path] = []
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    left_out: list[str] = []
    for path in (file for given in paths for file in _expand(expanded(given))):
        if path in files:
            raise UserError(f"'{path}' is given twice; name each file once.")
        files.append(path)
        if path.name.endswith(INDEX_SUFFIX):
            continue
        if path.suffix == ".safetensors":
            found = _open_safetensors(path)
            config |= _read_config(path.parent / "config.json")
        else:
            found, others = _open_torch(path)
            left_out += others
        if doubles := sorted(found.keys() & tensors.keys()):
            raise UserError(f"'{path}' holds '{doubles[0]}', as another file does; name the files of one model.")
        tensors |= found
    return Source(tuple(files), tensors, config, tuple(left_out))


def sha256(path: Path) -> str:
    """Checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_note(path: Path, digest: str) -> str | None:
    """What there is to say where an official file's name promises another checksum than `digest`."""
    match = HASHED_NAME.fullmatch(path.name)
    if match is None or digest.startswith(match["digits"]):
        return None
    return (
        f"the name of '{path.name}' says that its sha256 begins with {match['digits']}, but it is {digest[:8]}...: "
        "the file is not the official one, or was damaged on its way"
    )


def _expand(path: Path) -> list[Path]:
    """The files that a path stands for; an index stands for itself and its shards."""
    if path.is_dir():
        indices, single = sorted(path.glob(f"*{INDEX_SUFFIX}")), sorted(path.glob("*.safetensors"))
        if len(indices) > 1 or (not indices and len(single) != 1):
            raise UserError(f"'{path}' holds {len(indices) or len(single)} sets of .safetensors; name one file of it.")
        path = (indices or single)[0]
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; check the path.")
    if path.name.endswith(INDEX_SUFFIX):
        return [path, *_shards(path)]
    if path.suffix != ".safetensors" and path.suffix not in TORCH_SUFFIXES:
        raise UserError(f"'{path}' is no {', '.join(('.safetensors', *TORCH_SUFFIXES))}; name a file of weights.")
    return [path]


def _shards(index: Path) -> list[Path]:
    """The files of a Hugging Face index, which must say exactly what they hold."""
    try:
        where = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(where.values()))
        sound = all(isinstance(name, str) and name == Path(name).name for name in names)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"'{index}' is no index of .safetensors files beside it; get it again.")
    for name in names:
        shard = index.parent / name
        if not shard.is_file():
            raise UserError(f"'{index}' names '{name}', which is not beside it; get that file too.")
        held = safetensors.read_header(shard).keys()
        if different := sorted(held ^ {key for key, file in where.items() if file == name}):
            raise UserError(f"'{index}' and '{name}' disagree on '{different[0]}'; get both again.")
    return [index.parent / name for name in names]


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    def reader(key: str, entry: safetensors.Entry) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            if entry.dtype not in [safetensors.DTYPES[name] for name in safetensors.FLOATS]:
                raise UserError(f"tensor '{key}' of '{path}' holds {entry.dtype}, not floats; use plain weights.")
            return safetensors.read_tensor(path, entry)

        return read

    return {key: Tensor(entry.shape, reader(key, entry)) for key, entry in safetensors.read_header(path).items()}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged ({type(error).__name__}); get it again, or remove it.") from None
    return config if isinstance(config, dict) else {}


def _open_torch(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a .pth file, and the entries beside them."""
    with path.open("rb") as file:
        begin = file.read(9)
    length = int.from_bytes(begin[: safetensors.LENGTH_BYTES], "little")
    if begin[safetensors.LENGTH_BYTES :] == b"{" and length <= safetensors.HEADER_LIMIT:
        raise UserError(f"'{path}' is a .safetensors file under another name; rename it to end in .safetensors.")
    try:
        import torch
    except ImportError:
        raise UserError(
            f"'{path}' can only be read with torch, which is not installed; install the extra 'convert' "
            "(pip install -e '.[convert]'), or use the same weights as .safetensors."
        ) from None
    zipped = begin.startswith(safetensors.PICKLE_STARTS[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch has no error of its own for a bad file
        if type(error).__name__ == "UnpicklingError":
            found = re.search(r"(?:GLOBAL|class|global) ([\w.]+\.[\w.]+)", str(error))
            what = f"it asks for {found[1]}" if found else "it is no file of torch.save"
            raise UserError(
                f"'{path}' holds more than plain weights ({what}), and nothing in it was run; "
                "use the same weights as .safetensors, or save the state dict by itself."
            ) from None
        raise UserError(
            f"'{path}' is damaged, truncated or no file of torch.save ({type(error).__name__}); get it again."
        ) from None
    left_out: list[str] = []
    while wrapper := next((w for w in WRAPPERS if isinstance(loaded, dict) and isinstance(loaded.get(w), dict)), None):
        left_out += [str(key) for key in loaded if key != wrapper]
        loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"'{path}' holds a {type(loaded).__name__}, not a state dict; use another file.")
    for key, value in loaded.items():
        plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"
        if not isinstance(key, str) or not plain or value.is_quantized:
            raise UserError(f"'{path}' holds '{key}', which is no plain tensor; save the state dict by itself.")
    return {key: Tensor(tuple(value.shape), _torch_reader(key, value, path)) for key, value in loaded.items()}, left_out


def _torch_reader(key: str, tensor: Any, path: Path) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if not tensor.is_floating_point():
            raise UserError(f"tensor '{key}' of '{path}' holds {tensor.dtype}, not floats; use plain weights.")
        return tensor.detach().float().numpy()

    return read
