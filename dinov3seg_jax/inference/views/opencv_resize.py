"""OpenCV's bilinear resize of bytes, to the last bit: `cv2.resize(image, size)` on an x86 processor.

It has no antialiasing and computes in integers, in an order that decides the rounding.
"""

import numpy as np
from jaxtyping import Int, UInt8

ONE = np.float32(2048)  # weights are whole 2048ths


def resize_as_opencv(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bilinear, half-pixel centres. Exact halves are the mean of 2 x 2 pixels, which is what OpenCV makes of them."""
    if image.shape[:2] == (2 * height, 2 * width):
        pairs = image.reshape(height, 2, width, 2, 3).astype(np.int32)
        return ((pairs.sum(axis=(1, 3)) + 2) >> 2).astype(np.uint8)
    (top, bottom), (over, under) = _taps(image.shape[0], height, held=False)
    (left, right), (before, after) = _taps(image.shape[1], width, held=True)
    wide = image.astype(np.int32)
    wide = wide[:, left] * before[:, None] + wide[:, right] * after[:, None] >> 4
    sums = (wide[top] * over[:, None, None] >> 16) + (wide[bottom] * under[:, None, None] >> 16)
    return (sums + 2 >> 2).astype(np.uint8)


def _taps(inputs: int, outputs: int, *, held: bool) -> tuple[Int[np.ndarray, "2 n"], Int[np.ndarray, "2 n"]]:
    """The two neighbours of each output and their weights.

    Beyond an edge, columns have its weight in one (`held`); rows share it, and each share is rounded.
    """
    centres = ((np.arange(outputs) + 0.5) / (outputs / inputs) - 0.5).astype(np.float32)
    first = np.floor(centres).astype(int)
    share = centres - first.astype(np.float32)
    if held:
        share = np.where((first < 0) | (first >= inputs - 1), np.float32(0), share)
    places = np.clip(np.stack([first, first + 1]), 0, inputs - 1)
    return places, np.rint(np.stack([1 - share, share]) * ONE).astype(np.int32)
