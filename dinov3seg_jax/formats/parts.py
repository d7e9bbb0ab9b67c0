"""What each picture of a folder adds to a file of the whole folder, and the file made of that."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.outputs import Outputs

Lines = Iterable[bytes]  # of a part; the ends of its lines may be missing


class Classes(NamedTuple):
    """What all pictures of a folder have in common."""

    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "t 3"]

    def to_bytes(self) -> bytes:
        """What `read` takes."""
        return dumped({"names": list(self.names), "colors": self.colors.tolist()})

    @classmethod
    def read(cls, path: Path) -> "Classes":
        """What a file holds."""
        found = json.loads(path.read_bytes())
        return cls(tuple(found["names"]), np.array(found["colors"], np.uint8).reshape(-1, 3))


Part = Callable[[Answer, Outputs], Iterator[bytes]]
Join = Callable[[Iterable[Lines], Classes], Iterator[bytes]]  # may go through the parts more than once


class PartFiles:
    """Parts on disk, of which one at a time is read."""

    def __init__(self, paths: Iterable[Path]):
        """In the order of the pictures."""
        self._paths = list(paths)

    def __iter__(self) -> Iterator[Lines]:
        for path in self._paths:
            with path.open("rb") as file:
                yield file


def dumped(value: Any) -> bytes:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")
