"""Resizing pictures of bytes as torchvision does."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def resize(
    image: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    kernel: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Antialiased resize, the width before the height, whatever Pillow's version.

    Between the two Pillow and torchvision round to bytes, so the order counts. torchvision starts with the width, as
    Pillow did; since version 13 Pillow starts with whichever is less work, the height of most portraits. One value in
    four is then a grey level off, and with bicubic weights some are off by twenty. So each side has a call of its own.

    Args:
        image: of any size.
        size: height and width to resize to.
        kernel: whose weights to use.
        box: left, upper, right and lower border of the part that is resized, in pixels; all of it by default.

    Returns:
        A picture of that size.
    """
    height, width = size
    left, top, right, bottom = box or (0, 0, image.shape[1], image.shape[0])
    wide = Image.fromarray(image).resize((width, image.shape[0]), kernel, (left, 0, right, image.shape[0]))
    return np.asarray(wide.resize((width, height), kernel, (0, top, width, bottom)))
