"""Files of weights for tests, in a plain writer of its own, and the released layouts."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from tests.parity.official import arrays, section, state_dict

FIXTURES = Path(__file__).parents[1] / "fixtures"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64"}
LAYOUTS = json.loads(gzip.decompress((Path(__file__).parent / "layouts" / "state_dicts.json.gz").read_bytes()))


def official(name: str) -> dict[str, np.ndarray]:
    """The weights of a fixture under their official keys."""
    values = arrays(FIXTURES / f"{name}.npz")
    return state_dict(values) or section(values, "w/")


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A .safetensors file."""
    return stream(path, {key: value.shape for key, value in tensors.items()}, tensors.__getitem__, _dtypes(tensors))


def stream(
    path: Path,
    shapes: Mapping[str, Iterable[int]],
    values: Callable[[str], np.ndarray],
    dtypes: Mapping[str, str] | None = None,
) -> Path:
    """A .safetensors file whose tensors are made one at a time."""
    header, end = {}, 0
    for key, shape in shapes.items():
        dtype = (dtypes or {}).get(key, "float32")
        size = int(np.prod(list(shape))) * np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize
        header[key] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in shapes:
            file.write(values(key).tobytes())
    return path


def drawn(key: str, shape: Iterable[int]) -> np.ndarray:
    """Normal float32 noise that depends on the key alone; periods are powers, as in the releases."""
    if key.endswith("periods"):
        return (100 ** np.linspace(0, 1, *shape, endpoint=False)).astype(np.float32)
    return np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape), np.float32)


def _dtypes(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {key: str(value.dtype) for key, value in tensors.items()}
