"""Pictures of a segmentation: colours, overlay, legend, side by side."""

import functools
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dinov3seg_jax import fonts

UNLABELLED = -1
MAX_COLORS = 4096

_INK = (32, 33, 36)
_PAPER = (255, 255, 255)
_ELLIPSIS = "..."
_LONGEST_NAME = 14  # in rows, about 40 letters: one very long name must not push all others into one column


def palette(count: int) -> np.ndarray:
    """Colours that are as easy to tell apart as `count` allows, the same on every call.

    Each colour is the one farthest, in CIELAB, from those before it; so `palette(n)` begins with `palette(m)` for
    m < n. Colours near black, white and grey are not used: they vanish in pictures. Libraries' palettes are shorter
    than class lists, or change with their version; a class has one colour in all results of a folder.

    Args:
        count: 0..`MAX_COLORS`.

    Returns:
        uint8 [count, 3], RGB, all different.

    Raises:
        ValueError: `count` is out of range.
    """
    if not 0 <= count <= MAX_COLORS:
        raise ValueError(f"a palette holds 0 to {MAX_COLORS} colours, not {count}")
    return _palette(count).copy()


@functools.lru_cache(maxsize=8)
def _palette(count: int) -> np.ndarray:
    levels = np.arange(8, 256, 9, dtype=np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(colors)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    clear = (lab[:, 0] > 38) & (lab[:, 0] < 90) & (chroma > 24) & (chroma < 88)
    colors, lab = colors[clear], lab[clear]

    distance = np.full(len(lab), np.inf)
    nearest_to_start = ((lab - (58, 62, 38)) ** 2).sum(axis=-1).argmin()  # a warm red
    chosen: list[int] = []
    for _ in range(count):
        pick = int(distance.argmax()) if chosen else int(nearest_to_start)
        chosen.append(pick)
        distance = np.minimum(distance, ((lab - lab[pick]) ** 2).sum(axis=-1))
    return colors[chosen]


def _lab(colors: np.ndarray) -> np.ndarray:
    """uint8 sRGB [N, 3] to float64 CIELAB [N, 3] under daylight (D65)."""
    scaled = colors / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of a file of that kind, with Pillow's settings."""
    encoded = io.BytesIO()
    image.save(encoded, format=kind)
    return encoded.getvalue()


def overlay(image: np.ndarray, labels: np.ndarray, colors: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """Tint each region with the colour of its label and draw a thin darker line around it.

    Args:
        image: uint8 [H, W, 3].
        labels: Integer [H, W]; -1 leaves the pixel as it is.
        colors: uint8 [T, 3]; row t is the colour of label t.
        alpha: Weight of the colour, 0..1.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: Shapes or types are others, or a label has no colour.
    """
    if image.ndim != 3 or image.shape != (*labels.shape, 3):
        raise ValueError(f"image {image.shape} and labels {labels.shape} do not fit: expected [H, W, 3] and [H, W]")
    if image.dtype != np.uint8 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"image is {image.dtype} and labels are {labels.dtype}: expected uint8 and integers")
    if labels.size and not UNLABELLED <= labels.min() <= labels.max() < len(colors):
        raise ValueError(
            f"labels lie in {labels.min()}..{labels.max()}, but there are colours for 0..{len(colors) - 1}"
        )
    weight = round(256 * alpha)
    # Row T serves label -1. 256 x 255 still fits into uint16, so that a large picture needs no floats.
    tints = np.concatenate([np.asarray(colors, np.uint16) * weight, np.zeros((1, 3), np.uint16)])
    tinted = ((image * np.uint16(256 - weight) + tints[labels] + np.uint16(128)) >> 8).astype(np.uint8)
    picture = np.where((labels == UNLABELLED)[..., None], image, tinted)
    outline = _outline(labels, thickness=max(1, round(min(labels.shape) / 700)))
    picture[outline] = (colors[labels[outline]] * 0.45).astype(np.uint8)
    return picture


def _outline(labels: np.ndarray, thickness: int) -> np.ndarray:
    """bool [H, W]: labelled pixels within `thickness` of another label; between two labelled regions on one side."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        values, marked = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
        for step in range(1, thickness + 1):
            here, there = values[:-step], values[step:]
            differs = here != there
            marked[:-step] |= differs & (here != UNLABELLED)
            marked[step:] |= differs & (here == UNLABELLED)
    return edge


class _Style(NamedTuple):
    """Sizes of a text block, in pixels, all from the size of its letters."""

    size: int
    row: int
    swatch: int
    gap: int

    @classmethod
    def for_side(cls, side: int) -> "_Style":
        """Letters that can be read when a picture with this longer side is fitted to a screen."""
        size = max(13, round(side / 45))
        return cls(size, round(1.55 * size), round(0.95 * size), round(0.5 * size))


def legend(names: Sequence[str], colors: np.ndarray, width: int, side: int | None = None) -> np.ndarray:
    """The names beside their colours, in as many columns as fit.

    Args:
        names: T names; one too long for the width, or for a column, is cut short. For fonts see `fonts.drawable`.
        colors: uint8 [T, 3] or more rows.
        width: Width of the result in pixels, at least 1.
        side: Longer side, in pixels, of the picture that the letters are sized for; `width` if None.

    Returns:
        uint8 [h, width, 3], dark on white, h as the names need.
    """
    style = _Style.for_side(side or width)
    room = min(width - 3 * style.gap - style.swatch, _LONGEST_NAME * style.row)
    texts = [_Text.of(name, style).fitted(room) for name in names]
    column = style.swatch + 3 * style.gap + max((text.width for text in texts), default=0)
    columns = min(max(1, (width - style.gap) // column), max(1, len(texts)))
    rows = -(-len(texts) // columns)

    canvas = Image.new("RGB", (width, rows * style.row + 2 * style.gap), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (text, color) in enumerate(zip(texts, colors[: len(texts)], strict=True)):
        left = style.gap + place // rows * column
        middle = style.gap + place % rows * style.row + style.row // 2
        top = middle - style.swatch // 2
        box = (left, top, left + style.swatch, top + style.swatch)
        draw.rounded_rectangle(box, radius=style.swatch // 5, fill=tuple(int(value) for value in color))
        draw.text((left + style.swatch + style.gap, middle), text.line, _INK, text.font, anchor="lm")
    return np.array(canvas)


def with_legend(picture: np.ndarray, names: Sequence[str], colors: np.ndarray) -> np.ndarray:
    """The picture, unchanged in the top left corner, with a legend to its right if that fits in one column, or below.

    Args:
        picture: uint8 [H, W, 3].
        names: T names, in the order to show; only these appear.
        colors: uint8 [T, 3].

    Returns:
        uint8 [H', W', 3], H' >= H and W' >= W, the rest white.
    """
    if not len(names):
        return picture.copy()
    height, width = picture.shape[:2]
    side = max(height, width)
    style = _Style.for_side(side)
    widest = max(_Text.of(name, style).width for name in names) + style.swatch + 3 * style.gap
    beside = len(names) * style.row + 2 * style.gap <= height and widest <= max(width // 2, 8 * style.row)
    if beside:
        return _join([picture, legend(names, colors, widest + style.gap, side)], axis=1)
    at_least = min(widest + style.gap, _LONGEST_NAME * style.row)
    return _join([picture, legend(names, colors, max(width, at_least), side)], axis=0)


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
    style = _Style.for_side(max(max(picture.shape[:2]) for picture in equal))
    columns = [_titled(picture, title, style) for picture, title in zip(equal, titles, strict=True)]
    gap = np.full((1, style.gap, 3), _PAPER, np.uint8)
    parts = [part for column in columns for part in (gap, column)][1:]
    return _join(parts, axis=1)


def _titled(picture: np.ndarray, title: str, style: _Style) -> np.ndarray:
    strip = Image.new("RGB", (picture.shape[1], style.row), _PAPER)
    place = (picture.shape[1] // 2, style.row // 2)
    text = _Text.of(title, style).fitted(picture.shape[1])
    ImageDraw.Draw(strip).text(place, text.line, _INK, text.font, anchor="mm")
    return np.concatenate([np.array(strip), picture])


def _enlarged(picture: np.ndarray, height: int) -> np.ndarray:
    if picture.shape[0] == height:
        return picture
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def _join(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Concatenate along `axis`; the other side is filled with white."""
    other = 1 - axis
    longest = max(part.shape[other] for part in parts)

    def fill(part: np.ndarray) -> np.ndarray:
        margin = [(0, 0), (0, 0), (0, 0)]
        margin[other] = (0, longest - part.shape[other])
        return np.pad(part, margin, constant_values=255)

    return np.concatenate([fill(part) for part in parts], axis=axis)


class _Text(NamedTuple):
    """A line of text with its font."""

    line: str
    font: fonts.Font

    @classmethod
    def of(cls, name: str, style: _Style) -> "_Text":
        line, file = fonts.drawable(name)
        return cls(line, fonts.load(file, style.size))

    @property
    def width(self) -> int:
        return int(np.ceil(self.font.getlength(self.line)))

    def fitted(self, width: int) -> "_Text":
        """This, or as much of it as fits into `width` pixels."""
        if self.width <= width:
            return self
        for length in range(len(self.line) - 1, 0, -1):
            cut = self._replace(line=self.line[:length].rstrip() + _ELLIPSIS)
            if cut.width <= width:
                return cut
        return self._replace(line="")
