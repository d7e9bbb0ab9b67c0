"""How a picture lies: upright, and on white paper."""

import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

Window = tuple[int, int, int, int]  # top, bottom, left and right; bottom and right are the first beyond


class Pixels(NamedTuple):
    """A picture, where it has data, and where it lies."""

    rgb: UInt8[np.ndarray, "h w 3"]
    valid: Bool[np.ndarray, "h w"] | None = None  # None: everywhere
    place: Mapping[str, Any] = MappingProxyType({})  # on Earth, as arguments of `rasterio.open`


class Turn(NamedTuple):
    """From a picture as it is stored to the upright one: turned upside down, mirrored, then rows become columns."""

    down: bool = False
    mirrored: bool = False
    sideways: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The upright height and width."""
        return (width, height) if self.sideways else (height, width)

    def stored(self, window: Window, height: int, width: int) -> Window:
        """Where a part of the upright picture is stored, in a picture of that stored size."""
        top, bottom, left, right = window
        if self.sideways:
            top, bottom, left, right = left, right, top, bottom
        if self.down:
            top, bottom = height - bottom, height - top
        if self.mirrored:
            left, right = width - right, width - left
        return top, bottom, left, right

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """The upright picture, or part of one, of any [h, w, ...]."""
        pixels = pixels[:: -1 if self.down else 1, :: -1 if self.mirrored else 1]
        return np.swapaxes(pixels, 0, 1) if self.sideways else pixels


TURNS = {  # by the orientations of EXIF
    2: Turn(mirrored=True),
    3: Turn(down=True, mirrored=True),
    4: Turn(down=True),
    5: Turn(sideways=True),
    6: Turn(down=True, sideways=True),
    7: Turn(down=True, mirrored=True, sideways=True),
    8: Turn(mirrored=True, sideways=True),
}
AS_STORED = Turn()
UPRIGHT = 1  # the orientation that is none of these


def load_upright(image: Image.Image) -> Image.Image:
    """A picture with its pixels, turned as its EXIF data say; but for its pixels, the given one stays as it is."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow maps some files into memory by their names, in rows of the upright width, turned or not.
        name, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = name
    else:
        image.load()
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:
            return ImageOps.exif_transpose(image)
    return image


def on_white(
    colors: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"], premultiplied: bool
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture without transparency; premultiplied colours are those on black."""
    if premultiplied:
        return np.minimum(colors + (255 - alpha.astype(np.uint16))[..., None], 255).astype(np.uint8)
    layers = (Image.fromarray(np.ascontiguousarray(layer)) for layer in (colors, alpha))
    return np.array(laid_on_white(*layers))


def laid_on_white(colors: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGB of a picture and its transparency, one channel of 8 bits."""
    flat = Image.new("RGB", colors.size, "white")
    flat.paste(colors, mask=alpha)
    return flat
