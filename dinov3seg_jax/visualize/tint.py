"""A picture tinted by class, with contours."""

import io
from typing import Literal, get_args

import numpy as np
from PIL import Image

UNLABELLED = -1

Contours = Literal["thin", "off", "only"]
CONTOURS: tuple[str, ...] = get_args(Contours)

_DARKER = 0.45  # a contour on a tint of its own colour
_RIM = (24, 24, 24)  # around coloured contours, so that they are seen on any picture


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of a file of that kind, with Pillow's settings."""
    encoded = io.BytesIO()
    image.save(encoded, format=kind)
    return encoded.getvalue()


def overlay(
    image: np.ndarray, labels: np.ndarray, colors: np.ndarray, alpha: float = 0.55, contours: Contours = "thin"
) -> np.ndarray:
    """Tint each region with the colour of its label, and draw its contour.

    Args:
        image: uint8 [H, W, 3].
        labels: Integer [H, W]; -1 leaves the pixel as it is.
        colors: uint8 [T, 3]; row t is the colour of label t.
        alpha: Weight of the colour, 0..1.
        contours: "thin", a line within one of two regions, darker than the tint, or in the full colour where there is
            little tint; "off"; or "only": no tint, and a line on both sides in the colours of both, with a dark rim.

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
    thin = max(1, round(min(labels.shape) / 700))
    if contours == "only":
        return _coloured_lines(image, labels, colors, 2 * thin)
    picture = _tinted(image, labels, colors, alpha)
    if contours == "thin":
        outline = _outline(labels, thin)
        shade = np.interp(alpha, [0, 0.5], [1, _DARKER])
        picture[outline] = (colors[labels[outline]] * shade).astype(np.uint8)
    return picture


def _tinted(image: np.ndarray, labels: np.ndarray, colors: np.ndarray, alpha: float) -> np.ndarray:
    weight = round(256 * alpha)
    # Row T serves label -1. 256 x 255 still fits into uint16, so that a large picture needs no floats.
    tints = np.concatenate([np.asarray(colors, np.uint16) * weight, np.zeros((1, 3), np.uint16)])
    tinted = ((image * np.uint16(256 - weight) + tints[labels] + np.uint16(128)) >> 8).astype(np.uint8)
    return np.where((labels == UNLABELLED)[..., None], image, tinted)


def _coloured_lines(image: np.ndarray, labels: np.ndarray, colors: np.ndarray, thickness: int) -> np.ndarray:
    picture = image.copy()
    rim = max(1, thickness // 3)
    for width, rows in (
        (thickness + rim, np.broadcast_to(np.array(_RIM, np.uint8), colors.shape)),
        (thickness, colors),
    ):
        line = _outline(labels, width, both=True)
        picture[line] = rows[labels[line]]
    return picture


def _outline(labels: np.ndarray, thickness: int, both: bool = False) -> np.ndarray:
    """bool [H, W]: labelled pixels within `thickness` of another label; between two labelled regions on one side."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        values, marked = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
        for step in range(1, thickness + 1):
            here, there = values[:-step], values[step:]
            differs = here != there
            marked[:-step] |= differs & (here != UNLABELLED)
            marked[step:] |= differs & ((there != UNLABELLED) if both else (here == UNLABELLED))
    return edge
