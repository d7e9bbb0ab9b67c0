"""Colours as people and data sets write them."""

import re
from collections.abc import Sequence
from typing import Any

from PIL import ImageColor

from dinov3seg_jax.errors import UserError, one_line

Color = tuple[int, int, int]  # RGB, 0 to 255

NUMBERS = re.compile(r"[(\[]?\s*(\d+)\s*[,; ]\s*(\d+)\s*[,; ]\s*(\d+)\s*[)\]]?")


def read_color(value: Any, source: str) -> Color:
    """A colour.

    Args:
        value: [r, g, b], whole numbers in 0..255 or floats in 0..1, and perhaps an alpha, which does not count;
            "#rrggbb"; "170, 51, 0"; or a name that CSS knows.
        source: what an error calls it.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(value, str):
        if found := NUMBERS.fullmatch(value.strip()):
            return read_color([int(number) for number in found.groups()], source)
        try:
            return ImageColor.getrgb(value.strip())[:3]
        except ValueError:
            pass
    elif isinstance(value, Sequence) and len(value) in (3, 4):
        if all(isinstance(part, float) and 0 <= part <= 1 for part in value[:3]):
            value = [round(255 * part) for part in value[:3]]
        parts = [str(part) for part in value[:3]]  # YAML's are texts
        if all(part.isdecimal() and int(part) <= 255 for part in parts):
            red, green, blue = map(int, parts)
            return red, green, blue
    raise UserError(
        f"{source} is {one_line(repr(value), 60)}, which is no colour; write it as '#aa3300', [170, 51, 0] or a name "
        "of CSS, in quotes where a # begins it"
    )
