"""Files with official weights, opened without running anything in them; tensors are read one at a time, when asked for.

`.safetensors`, alone or sharded with an index, are read here, `.npz` without pickle, and TorchScript archives without
torch (`torchscript`). `.pth` goes through torch's weights-only loader, which refuses whatever is not plain data; it is
the only thing that torch is needed for.
"""

import dataclasses
import hashlib
import json
import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3seg_jax.convert import torchscript
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded
from dinov3seg_jax.places import local_copy
from dinov3seg_jax.store import safetensors

INDEX_SUFFIX = ".safetensors.index.json"
TOKENIZER_SUFFIX = ".model"  # of SentencePiece
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
OFFICIAL_WRAPPERS = ("teacher", "model", "state_dict", "module", "backbone")  # under which releases keep weights
WRAPPERS = (  # under which training of any kind does
    *OFFICIAL_WRAPPERS,
    *("ema", "model_ema", "ema_model", "state_dict_ema", "student", "pretrained", "encoder", "dinov3", "dinov3_vit"),
    *("net", "network", "model_state", "model_state_dict", "weights", "params", "_orig_mod", "_forward_module"),
)
WRAPPER = rf"(?:(?:{'|'.join(WRAPPERS)})\.)*"
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
    left_out: tuple[str, ...]  # entries of a training checkpoint that are not used
    notes: tuple[str, ...] = ()  # what was decided
    tokenizer: Path | None = None  # a SentencePiece model among the files


def open_source(paths: Sequence[str | Path], take: str = "") -> Source:
    """Find out what files hold.

    Args:
        paths: .safetensors files, index files, folders with either, or .pth files.
        take: what stands before the keys that are wanted, for files that hold more than one set of weights; "." for
            nothing. Files without it count whole.

    Raises:
        UserError: a file is missing, damaged, of another format, or more than plain weights; a tensor occurs twice;
            it is not clear which set of weights is meant, or none is what `take` says.
    """
    files: list[Path] = []
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    left_out: list[str] = []
    notes: list[str] = []
    taken = False
    tokenizers = [expanded(path) for path in paths if str(path).endswith(TOKENIZER_SUFFIX)]
    weights = [path for path in paths if not str(path).endswith(TOKENIZER_SUFFIX)]
    if not weights or len(tokenizers) > 1:
        what = "two tokenizers" if weights else "no weights"
        raise UserError(f"'{tokenizers[-1]}' comes with {what}; give the weights and one tokenizer of one model.")
    for given in weights:
        whole = _expand(expanded(given))
        if again := [path for path in whole if path in files]:
            raise UserError(f"'{again[0]}' is given twice; name each file once.")
        files += whole
        found, others, beside = _open(whole)
        config |= beside
        left_out += others
        path = whole[0]
        if take and (chosen := _below(path, found, take)):
            left_out += _names(found.keys() - {key for key, _ in chosen.values()})
            notes.append(f"the weights of '{path.name}' are those under '{take}'")
            found, taken = {key: tensor for key, (_, tensor) in chosen.items()}, True
        found, others = _one_set(path, found)
        left_out += others
        if unusual := _unusual(found):
            notes.append(f"the weights of '{path.name}' are those under {', '.join(map(repr, unusual))}")
        if doubles := sorted(found.keys() & tensors.keys()):
            raise UserError(f"'{path}' holds '{doubles[0]}', as another file does; name the files of one model.")
        tensors |= found
    if take and not taken:
        starts = ", ".join(sorted({key.split(".")[0] for key in tensors})[:5]) or "no name at all"
        raise UserError(f"nothing in '{files[0]}' is under '{take}'; its keys begin with {starts}, name one in --take.")
    return Source(tuple(files), tensors, config, tuple(left_out), tuple(notes), *tokenizers)


def _open(files: Sequence[Path]) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Tensors of a file, or of an index and its shards; entries beside them; and the config.json."""
    tensors: dict[str, Tensor] = {}
    for path in files:
        if path.name.endswith(INDEX_SUFFIX):
            continue
        if path.suffix == ".npz":
            return _open_npz(path), [], {}
        if path.suffix != ".safetensors":
            return *_open_torch(path), {}
        tensors |= _open_safetensors(path)
    return tensors, [], _read_config(files[0].parent / "config.json")


def _start(key: str) -> str:
    """The wrappers before a key, with their dots."""
    match = re.match(WRAPPER, key)
    return match[0] if match else ""


def _one_set(path: Path, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file that holds each once, and what was left out: all but the teacher of a student.

    Raises:
        UserError: it holds several sets of weights, and it is not known which one is meant.
    """
    sets = _sets(found)
    if len(sets) < 2:
        return found, []
    teacher = {key: tensor for key, tensor in found.items() if "teacher" in _start(key).split(".")}
    if teacher and len(_sets(teacher)) < 2:
        return teacher, _names(found.keys() - teacher.keys())
    named = [f"under '{start}'" if start else "under nothing" for start in sets]
    raise UserError(
        f"'{path}' holds {len(sets)} sets of weights, {' and '.join(named)}; "
        f"choose one, as in --take {sets[-1].removesuffix('.') or '.'}."
    )


def _names(keys: Iterable[str]) -> list[str]:
    """What keys are listed as: their wrappers, or else their first part."""
    return sorted({_start(key).removesuffix(".") or key.split(".")[0] for key in keys})


def _sets(found: Iterable[str]) -> list[str]:
    """The wrappers of tensors that occur under more than one."""
    starts: dict[str, set[str]] = defaultdict(set)
    for key in found:
        start = _start(key)
        starts[key.removeprefix(start)].add(start)
    return sorted({start for several in starts.values() if len(several) > 1 for start in several})


def _below(path: Path, found: Mapping[str, Tensor], take: str) -> dict[str, tuple[str, Tensor]]:
    """Tensors whose keys begin with `take`, without it, and their whole keys."""
    wanted = take.strip(".")
    if not wanted:
        return {key: (key, tensor) for key, tensor in found.items() if not _start(key)}
    chosen = {key.removeprefix(f"{wanted}."): (key, found[key]) for key in found if key.startswith(f"{wanted}.")}
    if chosen:
        return chosen
    for key, tensor in found.items():
        if match := re.match(rf"{WRAPPER}{re.escape(wanted)}\.", key):
            rest = key.removeprefix(match[0])
            if rest in chosen:
                one, two = (name.removesuffix(f".{rest}") for name in (chosen[rest][0], key))
                raise UserError(f"'{path}' holds two sets under '{take}'; say --take {one} or --take {two}.")
            chosen[rest] = key, tensor
    return chosen


def _unusual(found: Iterable[str]) -> list[str]:
    """Wrappers that releases do not have."""
    starts = {_start(key) for key in found}
    return sorted(start for start in starts if not set(start.split(".")[:-1]) <= set(OFFICIAL_WRAPPERS))


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
    """The files that a path stands for; an index stands for itself and its shards; copied here from a bucket."""
    path = local_copy(path)
    if path.is_dir():
        indices, single = sorted(path.glob(f"*{INDEX_SUFFIX}")), sorted(path.glob("*.safetensors"))
        if len(indices) > 1 or (not indices and len(single) != 1):
            raise UserError(f"'{path}' holds {len(indices) or len(single)} sets of .safetensors; name one file of it.")
        path = (indices or single)[0]
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; check the path.")
    if path.name.endswith(INDEX_SUFFIX):
        return [path, *_shards(path)]
    if path.suffix not in (".safetensors", ".npz", *TORCH_SUFFIXES):
        raise UserError(
            f"'{path}' is no {', '.join(('.safetensors', '.npz', *TORCH_SUFFIXES))}; name a file of weights."
        )
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


def _open_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of NumPy's archive, read one at a time; what is pickled in it is refused."""

    def reader(key: str, dtype: np.dtype) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            if not np.issubdtype(dtype, np.floating):
                raise UserError(f"tensor '{key}' of '{path}' holds {dtype}, not floats; use plain weights.")
            try:
                with np.load(path, allow_pickle=False) as archive:
                    return archive[key]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise UserError(f"'{path}' is damaged ({type(error).__name__} in '{key}'); get it again.") from None

        return read

    tensors: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, dtype = header[version](file)
                key = name.removesuffix(".npy")
                if dtype.hasobject:
                    raise UserError(
                        f"'{path}' holds '{key}', which is pickled, and nothing in it was run; use another."
                    )
                tensors[key] = Tensor(shape, reader(key, dtype))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"'{path}' is damaged, or no archive of NumPy ({type(error).__name__}); get it again."
        ) from None
    return tensors


def _open_torch(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a .pth file, and the entries beside them."""
    with path.open("rb") as file:
        begin = file.read(9)
    length = int.from_bytes(begin[: safetensors.LENGTH_BYTES], "little")
    if begin[safetensors.LENGTH_BYTES :] == b"{" and length <= safetensors.HEADER_LIMIT:
        raise UserError(f"'{path}' is a .safetensors file under another name; rename it to end in .safetensors.")
    zipped = begin.startswith(safetensors.PICKLE_STARTS[0])
    if zipped and torchscript.is_archive(path):
        return {key: Tensor(*tensor) for key, tensor in torchscript.open_archive(path).items()}, []
    try:
        import torch
    except ImportError:
        raise UserError(
            f"'{path}' can only be read with torch, which is not installed; install the extra 'convert' "
            "(pip install -e '.[convert]'), or use the same weights as .safetensors."
        ) from None
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
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"'{path}' holds a {type(loaded).__name__}, not a state dict; use another file.")
    loaded, left_out = _unnested(loaded, torch.Tensor)
    for key, value in loaded.items():
        plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type == "cpu"
        if not isinstance(key, str) or not plain or value.is_quantized:
            raise UserError(f"'{path}' holds '{key}', which is no plain tensor; save the state dict by itself.")
    return {key: Tensor(tuple(value.shape), _torch_reader(key, value, path)) for key, value in loaded.items()}, left_out


def _unnested(loaded: dict[Any, Any], tensor: type) -> tuple[dict[Any, Any], list[str]]:
    """Weights that a checkpoint keeps under known names, with these before their keys, and the entries beside them."""
    inner = [name for name in loaded if name in WRAPPERS and _holds(loaded[name], tensor)]
    if not inner:
        return loaded, []
    weights: dict[Any, Any] = {}
    left_out = [str(name) for name in loaded if name not in inner]
    for name in inner:
        found, others = _unnested(loaded[name], tensor)
        weights |= {f"{name}.{key}": value for key, value in found.items()}
        left_out += others
    return weights, left_out


def _holds(entry: Any, tensor: type) -> bool:
    return isinstance(entry, dict) and any(
        isinstance(value, tensor) or (name in WRAPPERS and _holds(value, tensor)) for name, value in entry.items()
    )


def _torch_reader(key: str, tensor: Any, path: Path) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if not tensor.is_floating_point():
            raise UserError(f"tensor '{key}' of '{path}' holds {tensor.dtype}, not floats; use plain weights.")
        return tensor.detach().float().numpy()

    return read
