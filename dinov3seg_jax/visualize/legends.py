"""Names beside their colours, and pictures under their titles."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dinov3seg_jax.visualize.lines import RGB, Line

INK: RGB = (32, 33, 36)
PALE_INK: RGB = (95, 99, 104)
PAPER: RGB = (255, 255, 255)
_LONGEST_NAME = 14  # in rows, about 40 letters: one very long name must not push all others into one column
_LEAST_ROWS = 12  # that a legend may have, however small the picture is


class Style(NamedTuple):
    """Sizes of a text block, in pixels, all from the size of its letters."""

    size: int
    row: int
    swatch: int
    gap: int

    @classmethod
    def for_side(cls, side: float) -> "Style":
        """Letters that can be read when a picture of 4 : 3 with this longer side is fitted to a screen."""
        size = max(13, round(side / 45))
        return cls(size, round(1.55 * size), round(0.95 * size), round(0.5 * size))

    @classmethod
    def for_size(cls, height: int, width: int) -> "Style":
        """The same for any picture: in a strip, letters lie between what its length and its height would have."""
        return cls.for_side(math.sqrt(height * width * 4 / 3))


class _Entry(NamedTuple):
    """A row of a legend."""

    name: Line
    share: Line
    color: RGB | None  # None: an empty box, for what has no colour

    def width(self, style: Style) -> int:
        """Without the gap behind it."""
        share = style.gap + self.share.width if self.share.text else 0
        return style.swatch + style.gap + self.name.width + share


def legend(
    names: Sequence[str], colors: np.ndarray, width: int, side: int | None = None, shares: Sequence[str] = ()
) -> np.ndarray:
    """The names beside their colours, in as many columns as fit.

    Args:
        names: T names; one too long for the width, or for a column, is cut short. For fonts see `fonts.runs`.
        colors: uint8 [T, 3] or more rows. A name without a row has an empty box.
        width: Width of the result in pixels, at least 1.
        side: Longer side, in pixels, of the picture of 4 : 3 that the letters are sized for; `width` if None.
        shares: what stands behind each name, as in "12.5%"; empty: nothing does.

    Returns:
        uint8 [h, width, 3], dark on white, h as the names need.
    """
    style = Style.for_side(side or width)
    return _legend(_entries(names, colors, style, shares, width), width, style)


def with_legend(
    picture: np.ndarray, names: Sequence[str], colors: np.ndarray, shares: Sequence[str] = ()
) -> np.ndarray:
    """The picture, unchanged in the top left corner, with a legend to its right if that fits in one column, or below.

    A legend below is not higher than the picture, or than 12 rows: what does not fit is counted in its last row.

    Args:
        picture: uint8 [H, W, 3].
        names: T names, in the order to show; only these appear.
        colors: uint8 [T, 3]; a name without a row has an empty box.
        shares: what stands behind each name, as in "12.5%"; empty: nothing does.

    Returns:
        uint8 [H', W', 3], H' >= H and W' >= W, the rest white.
    """
    if not len(names):
        return picture.copy()
    height, width = picture.shape[:2]
    style = Style.for_size(height, width)
    entries = _entries(names, colors, style, shares, max(width, _LONGEST_NAME * style.row))
    widest = max(entry.width(style) for entry in entries) + 2 * style.gap
    fits = len(names) * style.row + 2 * style.gap <= height
    if fits and widest <= max(0.6 * width, 10 * style.row):
        return join([picture, _legend(entries, widest, style)], axis=1)
    width = max(width, min(widest, (_LONGEST_NAME + 3) * style.row))
    more = _Entry(Line(f"and {len(entries)} more", style.size), Line("", style.size), None)
    most = _columns([*entries, more], width, style) * max(_LEAST_ROWS, (height - 2 * style.gap) // style.row)
    if len(entries) > most:
        left_out = Line(f"and {len(entries) - most + 1} more", style.size)
        entries = [*entries[: most - 1], more._replace(name=left_out)]
    return join([picture, _legend(entries, width, style)], axis=0)


def _entries(names: Sequence[str], colors: np.ndarray, style: Style, shares: Sequence[str], width: int) -> list[_Entry]:
    behind = [Line(share, style.size) for share in shares] or [Line("", style.size)] * len(names)
    room = width - 3 * style.gap - style.swatch - max((share.width + style.gap for share in behind), default=0)
    lines = [Line(name, style.size).fitted(min(room, _LONGEST_NAME * style.row)) for name in names]
    known = [_rgb(color) for color in colors[: len(names)]]
    boxes = [*known, *[None] * (len(names) - len(known))]
    return [_Entry(*entry) for entry in zip(lines, behind, boxes, strict=True)]


def _columns(entries: Sequence[_Entry], width: int, style: Style) -> int:
    column = max((entry.width(style) for entry in entries), default=0) + 2 * style.gap
    return min(max(1, (width - style.gap) // column), max(1, len(entries)))


def _legend(entries: Sequence[_Entry], width: int, style: Style) -> np.ndarray:
    columns = _columns(entries, width, style)
    rows = -(-len(entries) // columns)
    column = max((entry.width(style) for entry in entries), default=0) + 2 * style.gap
    canvas = Image.new("RGB", (width, rows * style.row + 2 * style.gap), PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, entry in enumerate(entries):
        left = style.gap + place // rows * column
        middle = style.gap + place % rows * style.row + style.row // 2
        _draw_box(draw, left, middle, style, entry.color)
        entry.name.draw(draw, left + style.swatch + style.gap, middle, INK)
        entry.share.draw(draw, left + column - 2 * style.gap - entry.share.width, middle, PALE_INK)
    return np.array(canvas)


def _draw_box(draw: ImageDraw.ImageDraw, left: int, middle: int, style: Style, color: RGB | None) -> None:
    top = middle - style.swatch // 2
    box = (left, top, left + style.swatch, top + style.swatch)
    pale = color is None or min(color) > 200  # which nobody would see on white
    outline = PALE_INK if pale else None
    draw.rounded_rectangle(box, radius=style.swatch // 5, fill=color, outline=outline, width=max(1, style.size // 12))


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Pictures in a row under their titles; lower ones are enlarged to the height of the highest.

    Args:
        pictures: N arrays, uint8 [H, W, 3].
        titles: N titles; one too long for its picture is cut short.

    Returns:
        uint8 [H', W', 3], white between the pictures.

    Raises:
        ValueError: There is no picture, or not one title for each.
    """
    if not pictures or len(pictures) != len(titles):
        raise ValueError(f"{len(pictures)} pictures and {len(titles)} titles: give one title for each picture")
    height = max(picture.shape[0] for picture in pictures)
    equal = [_enlarged(picture, height) for picture in pictures]
    style = Style.for_size(height, sum(picture.shape[1] for picture in equal))
    columns = [_titled(picture, title, style) for picture, title in zip(equal, titles, strict=True)]
    gap = np.full((1, style.gap, 3), PAPER, np.uint8)
    parts = [part for column in columns for part in (gap, column)][1:]
    return join(parts, axis=1)


def join(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Concatenate along `axis`; the other side is filled with white."""
    other = 1 - axis
    longest = max(part.shape[other] for part in parts)

    def fill(part: np.ndarray) -> np.ndarray:
        margin = [(0, 0), (0, 0), (0, 0)]
        margin[other] = (0, longest - part.shape[other])
        return np.pad(part, margin, constant_values=255)

    return np.concatenate([fill(part) for part in parts], axis=axis)


def _titled(picture: np.ndarray, title: str, style: Style) -> np.ndarray:
    strip = Image.new("RGB", (picture.shape[1], style.row), PAPER)
    line = Line(title, style.size).fitted(picture.shape[1])
    line.draw(ImageDraw.Draw(strip), (picture.shape[1] - line.width) // 2, style.row // 2, INK)
    return np.concatenate([np.array(strip), picture])


def _enlarged(picture: np.ndarray, height: int) -> np.ndarray:
    if picture.shape[0] == height:
        return picture
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def _rgb(color: np.ndarray) -> RGB:
    red, green, blue = (int(value) for value in color)
    return red, green, blue
