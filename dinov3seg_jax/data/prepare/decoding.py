"""Pictures and label files as they come out of an archive, checked before they are believed."""

import io
import warnings
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from PIL.ImageFile import ImageFile

from dinov3seg_jax.data.orientation import UPRIGHT, orientation
from dinov3seg_jax.data.prepare.archives import Member, read_member
from dinov3seg_jax.errors import UserError, reason


def decode_picture(content: bytes, member: Member) -> ImageFile:
    """A JPEG or PNG, decoded to the last pixel.

    Raises:
        UserError: It is damaged or no such picture, or claims more pixels than Pillow takes for a bomb.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
            stored = str(image.tile[0].args)
            image.load()
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UserError(
                f"{member} claims more than {Image.MAX_IMAGE_PIXELS:,} pixels, as no picture of this data set has; "
                "get the official one."
            ) from None
        except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
            raise UserError(f"{member} is truncated or damaged ({reason(error)}); get it again.") from None
    if "L;2" in stored or "L;4" in stored:  # which Pillow scales up to 0 .. 255
        raise UserError(f"{member} stores fewer than 8 bits a pixel; get the official file.")
    return image


def read_indices(member: Member) -> Int[np.ndarray, "h w"]:
    """The values of a label file with one channel; of a palette, the indices.

    Raises:
        UserError: as for `decode_picture`; or it is a picture in colours, or is to be turned.
    """
    image = _decode_label(member)
    if image.mode not in ("L", "P") and not image.mode.startswith("I"):
        raise UserError(
            f"{member} is a picture of mode {image.mode}, not one value for each pixel; get the official label files."
        )
    return np.asarray(image).astype(np.int32)


def read_colours(member: Member) -> UInt8[np.ndarray, "h w 3"]:
    """The red, green and blue of a label file.

    Raises:
        UserError: as for `decode_picture`; or it has one channel, whose 8 bits cannot hold the values, or is to be
            turned.
    """
    image = _decode_label(member)
    if image.mode != "RGB":
        raise UserError(
            f"{member} is a picture of mode {image.mode}, but values beyond 8 bits are expected in its red and green; "
            "get the official label files."
        )
    return np.asarray(image)


def _decode_label(member: Member) -> ImageFile:
    image = decode_picture(read_member(member), member)
    if orientation(image) != UPRIGHT:  # which the file that is written could not say
        raise UserError(f"{member} notes that it is to be turned, as no official label file does; get that.")
    return image


def shrink(image: UInt8[np.ndarray, "h w 3"], label: Any, short_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Shrink to a short side in pixels, if it is longer, as OpenCV's resize does in the field's preparation.

    The image takes the two nearest pixels in each direction, weighted, without antialiasing; the label the one at
    floor(i * old / new). The long side is rounded, halves to even.
    """
    height, width = label.shape
    short = min(height, width)
    if short <= short_side:
        return image, label
    new_height, new_width = (short_side if side == short else round(side / short * short_side) for side in label.shape)
    rows, columns = _nearest(height, new_height), _nearest(width, new_width)
    blended = _blend(_blend(image, new_height, 0), new_width, 1)
    return np.rint(blended).astype(np.uint8), label[rows[:, None], columns]


def _nearest(old: int, new: int) -> np.ndarray:
    return np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64)  # with OpenCV's roundings


def _blend(values: np.ndarray, count: int, axis: int) -> np.ndarray:
    old = values.shape[axis]
    place = np.clip((np.arange(count) + 0.5) * (old / count) - 0.5, 0, old - 1)
    first = np.minimum(place.astype(np.int64), old - 2)
    share = (place - first).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return values.take(first, axis) * (1 - share) + values.take(first + 1, axis) * share
