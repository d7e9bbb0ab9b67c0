"""From what Pillow opened to RGB bytes, also where Pillow itself would cut 16 bits to 8 or lose a range."""

import io
import re
import sys
from typing import Any

import numpy as np
from jaxtyping import Bool, Num
from PIL import Image, ImageFile, TiffImagePlugin

from dinov3seg_jax.data.paper import Pixels, laid_on_white, load_upright, on_white
from dinov3seg_jax.data.stretch import Part, Stretch, black_and_white, full_range, grid_step, to_bytes
from dinov3seg_jax.data.tiff_tags import TiffTags, tags_of

GREY = ("I", "F")  # and those that begin with "I;16"
COLORS_OF_16_BITS = re.compile("(RGB|RGBA|RGBX);16([LBN])")  # as they lie in a file


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits, of a picture without a range of its own; see `images.read_image`."""
    if image.has_transparency_data:
        layered = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return laid_on_white(layered, layered.getchannel("A"))
    return image.convert("RGB")


def show_full_page(image: Image.Image) -> None:
    """Of a TIFF, the first page that is no reduced copy of another."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not tags_of(image).reduced:
        return
    for page in range(1, image.n_frames):
        image.seek(page)
        if not tags_of(image).reduced:
            return
    image.seek(0)


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits, or values that stand for no data: `to_rgb` would lose them."""
    if image.mode in GREY or image.mode.startswith("I;16") or _colors_of_16_bits(image):
        return True
    return isinstance(image, TiffImagePlugin.TiffImageFile) and tags_of(image).nodata is not None


def deep_pixels(image: Image.Image, name: str, stretch: Stretch | None) -> Pixels:
    """A picture of any depth, upright, its range known by its numbers; see `images.read_image`."""
    tags = tags_of(image) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    values, alpha = _numbers(image)
    bits = tags.bits if tags is not None and tags.bits < 8 * values.dtype.itemsize and values.dtype.itemsize > 1 else 0
    counting = np.isfinite(values)
    valid = _valid(values, tags)
    if valid is not None:
        counting &= values != tags.nodata  # type: ignore[union-attr]  # which there is
    part = Part(values, counting)
    limits = black_and_white(name, values.dtype, bits, stretch, lambda: [part], grid_step(*values.shape[:2]))
    shades = to_bytes(values, limits)
    colors = np.broadcast_to(shades, (*shades.shape[:2], 3))
    if alpha is not None:
        colors = on_white(colors, to_bytes(alpha, full_range(alpha.dtype) or (0, 1)), premultiplied=False)
    return Pixels(np.array(colors), None if valid is None or valid.all() else valid)


def _numbers(image: Image.Image) -> tuple[Num[np.ndarray, "h w c"], Num[np.ndarray, "h w"] | None]:
    """Grey values or colours, and alpha where there is some."""
    transparent = image.info.get("transparency")
    if isinstance(image, ImageFile.ImageFile) and _colors_of_16_bits(image):
        values = _both_bytes(image)
        if values.shape[2] == 4:
            return values[..., :3], values[..., 3] if image.mode == "RGBA" else None
        return values, None if transparent is None else (values != np.uint16(transparent)).any(axis=-1)
    upright = load_upright(image)
    if image.mode in GREY or image.mode.startswith("I;16"):
        values = np.asarray(upright)[..., None]
        values = values.astype(values.dtype.newbyteorder("="))
        if image.format == "PPM" and image.mode == "I":  # whose 16 bits Pillow opens as 32
            values = values.astype(np.uint16)
        return values, None if not isinstance(transparent, int) else values[..., 0] != transparent
    if upright.has_transparency_data:
        layers = np.asarray(upright.convert("RGBA"))
        return layers[..., :3], layers[..., 3]
    grey = upright.mode in ("1", "L")
    return (np.asarray(upright.convert("L"))[..., None] if grey else np.asarray(upright.convert("RGB"))), None


def _valid(values: Num[np.ndarray, "h w c"], tags: TiffTags | None) -> Bool[np.ndarray, "h w"] | None:
    """Pixels with a value that does not stand for no data, where one does."""
    if tags is None or tags.nodata is None:
        return None
    return ((values != tags.nodata) & np.isfinite(values)).any(axis=-1)


def _colors_of_16_bits(image: Image.Image) -> bool:
    return any(COLORS_OF_16_BITS.fullmatch(_layout(tile)) for tile in getattr(image, "tile", ()))


def _layout(tile: ImageFile._Tile) -> str:
    """How the samples lie in the file."""
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    return str(arguments[0]) if arguments else ""


def _both_bytes(image: ImageFile.ImageFile) -> Num[np.ndarray, "h w c"]:
    """16-bit colours, of which Pillow keeps the higher byte; told that the other byte comes first, it keeps that."""
    assert image.fp is not None  # of a picture whose pixels were not read
    position, page = image.fp.tell(), image.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    halves = []
    for lower in (False, True):
        with Image.open(io.BytesIO(content), formats=[str(image.format)]) as half:
            half.seek(page)
            if lower:
                half.tile = [tile._replace(args=_swapped(tile.args)) for tile in half.tile]
            halves.append(np.asarray(load_upright(half)).astype(np.uint16))
    return halves[0] * np.uint16(256) + halves[1]


def _swapped(arguments: Any) -> Any:
    if isinstance(arguments, tuple):
        return (_swapped(arguments[0]), *arguments[1:])
    mode, order = str(arguments).split(";16")
    native = "L" if sys.byteorder == "little" else "B"
    return f"{mode};16{'B' if order.replace('N', native) == 'L' else 'L'}"
