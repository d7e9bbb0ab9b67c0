"""Large pictures and their labels, drawn smaller."""

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image


def shrunk(labels: Shaped[np.ndarray, "h w"], side: int) -> Shaped[np.ndarray, "h2 w2"]:
    """Labels at most `side` high and wide: those in the middle of the pixels that are drawn."""
    rows, columns = (
        (np.arange(shown) * 2 + 1) * length // (2 * shown)
        for length, shown in zip(labels.shape, _size(labels, side), strict=True)
    )
    return labels[np.ix_(rows, columns)]


def shrunk_picture(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture at most `side` high and wide."""
    height, width = _size(image, side)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _size(pixels: np.ndarray, side: int) -> tuple[int, int]:
    scale = min(side / max(pixels.shape[:2]), 1)
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return height, width
