"""What every format is written from."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

NO_DATA = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """A labelled picture; its arrays may lie on disk.

    Attributes:
        file: the picture's name; in a folder, its path there, with slashes.
        labels: for each pixel, the index of its class in `names`; -1 where there are no data.
        confidence: the score of that class, in [0, 1].
        names: of the classes, as they are shown.
        colors: of the classes, RGB.
        place: where on Earth the picture lies, as arguments of `rasterio.open`; empty if unknown.
        scores: of every class in every pixel, in [0, 1]; None if they were not kept.
    """

    file: str
    labels: Int[np.ndarray, "h w"]
    confidence: Float[np.ndarray, "h w"]
    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "t 3"]
    place: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: Float[np.ndarray, "t h w"] | None = None

    @property
    def height(self) -> int:
        """In pixels."""
        return self.labels.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.labels.shape[1]

    def hex_color(self, index: int) -> str:
        """A class's colour, as in "#00a0ff"."""
        return hex_color(self.colors[index])


def hex_color(color: UInt8[np.ndarray, " 3"]) -> str:
    """As in "#00a0ff"."""
    return "#{:02x}{:02x}{:02x}".format(*map(int, color))
