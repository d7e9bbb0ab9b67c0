"""COCO's run lengths, which several data sets hold masks in."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


def decode_runs(runs: str | Sequence[int], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask of run lengths: of pixels outside and inside in turn, column after column.

    Args:
        runs: lengths, or their compressed form: from the fourth on each is the difference to the last but one, in
            characters of five bits (code 48 on), low bits first, where 32 says that another follows, and 16 in the last
            one that the number is negative.
        height, width: of the image.

    Returns:
        bool [height, width].

    Raises:
        ValueError: The lengths do not fill the image exactly, or are none.
    """
    lengths = uncompressed(runs) if isinstance(runs, str) else runs
    if not all(isinstance(length, int) and length >= 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(f"does not fill its {width} x {height} pixels")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def uncompressed(runs: str) -> list[int]:
    """The lengths; none where the text is no such form, or was cut off within a number."""
    lengths: list[int] = []
    number = bits = 0
    for character in runs:
        group = ord(character) - 48
        if not 0 <= group < 64:
            return []
        number |= (group & 31) << bits
        bits += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << bits
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = bits = 0
    return [] if bits else lengths
