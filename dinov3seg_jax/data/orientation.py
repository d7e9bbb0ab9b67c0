"""Which way up: a picture is turned as its EXIF says, and its mask with it.

One rule for both files, whoever reads them. A mask that notes an orientation itself is turned by that. Any other
belongs to the pixels of its picture as they are stored, and is turned as the picture is; unless its size says that it
was drawn on the upright picture already.
"""

import contextlib

import numpy as np
from PIL import ExifTags
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dinov3seg_jax.data.paper import TURNS, UPRIGHT

QUARTER_TURNS = (5, 6, 7, 8)


def orientation(image: ImageFile) -> int:
    """1 if a picture is upright as stored; else the turn or mirroring that it notes, 2 to 8.

    Ask before the pixels of a TIFF are read: Pillow turns them by itself, and forgets the note. Those of a PNG are read
    here, since the note may stand behind them; what the decoder raises is passed on.
    """
    if image.format == "PNG" and "exif" not in image.info:
        image.load()
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        noted = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        if noted in TURNS:
            return int(noted)
    return UPRIGHT


def upright_size(image: ImageFile) -> tuple[int, int]:
    """Height and width of a picture once it is turned, before its pixels are; see `orientation`."""
    width, height = image.size
    known = isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.Orientation) in QUARTER_TURNS
    if known or orientation(image) not in QUARTER_TURNS:  # Pillow gives a TIFF's size upright
        return height, width
    return width, height


def turn(pixels: np.ndarray, by: int) -> np.ndarray:
    """Pixels [H, W, ...] as stored, turned upright."""
    return np.ascontiguousarray(TURNS[by].apply(pixels)) if by in TURNS else pixels


def fits(mask: tuple[int, ...], own: int, picture: tuple[int, ...], turned: int) -> bool:
    """Whether a mask can belong to a picture.

    Args:
        mask: its height and width, turned by its own note.
        own: that note, 1 to 8.
        picture: height and width upright.
        turned: how the picture was, 1 to 8.
    """
    return mask == picture or (own == UPRIGHT and turned in QUARTER_TURNS and mask == picture[::-1])


def turn_mask(mask: np.ndarray, own: int, picture: tuple[int, ...], turned: int) -> np.ndarray:
    """The values of a mask that `fits`, [H, W], turned as its picture was unless they are upright; arguments alike."""
    if own != UPRIGHT:
        return mask
    drawn_upright = turned in QUARTER_TURNS and picture[0] != picture[1] and mask.shape == picture
    return mask if drawn_upright else turn(mask, turned)
