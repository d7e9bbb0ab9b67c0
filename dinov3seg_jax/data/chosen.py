"""Some examples of a source, in an order of one's own; one may be there several times."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov3seg_jax.data.masks import Mask


class Chosen:
    """Example number n is the source's number `indices[n]`."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        """Of any source of examples."""
        self._source, self._indices = source, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example."""
        return self._source[self._at(index)]

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self._indices):
            raise IndexError(f"image {index} of {len(self._indices)}")
        return int(self._indices[index])


class ChosenFiles(Chosen):
    """The same of a source whose masks are files; see `folder.ImageFolder`."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        """Of a source with `reader`, `mask` and `files`."""
        super().__init__(source, indices)
        self.reader = source.reader

    def mask(self, index: int) -> Mask:
        """The mask of an example."""
        return self._source.mask(self._at(index))

    def files(self, index: int) -> tuple[str, Path, Path]:
        """The name of an example, and its files."""
        return self._source.files(self._at(index))


def choose(source: Any, indices: Sequence[int]) -> Chosen:
    """`ChosenFiles` where the source has what that takes."""
    return (ChosenFiles if hasattr(source, "files") else Chosen)(source, indices)
