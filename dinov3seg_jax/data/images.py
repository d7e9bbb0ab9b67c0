"""Any picture a user has, as 8-bit RGB, or one sentence that says why not."""

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from dinov3seg_jax.data.orientation import orientation, upright_size
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import expanded

MAX_PIXELS = 400_000_000

# Formats Pillow decodes by itself. Left out are those that hand the file to another program, as EPS does.
# TGA comes last: it has no signature, so that its reader tries whatever the others refused.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "ICO": (".ico",),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb"),
    "TGA": (".tga",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_pillow_limit = threading.Lock()


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as 8-bit RGB, upright.

    The EXIF rotation is applied. Transparency is dropped by laying the picture on white. Of an animation or a
    multi-page file the first picture is read. Colour profiles are not applied. Grey values beyond 8 bits are scaled:
    16-bit ones are divided by 257; 32-bit integers outside 0..255, and floats outside both 0..1 (times 255) and
    0..255 (as they are), are stretched from their smallest to their largest value. Values that are not finite become
    black.

    Args:
        path: A file in one of `FORMATS`, recognised by its content, with at most `MAX_PIXELS` pixels.

    Returns:
        uint8 [H, W, 3], RGB, 0..255, writable.

    Raises:
        UserError: The file is missing, empty, damaged, too large, or no picture.
    """
    path = expanded(path)
    with open_picture(path, str(path)) as image:
        return _decode(image, str(path))


def as_array(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A picture in any of the accepted forms as RGB bytes.

    Args:
        image: a file (see `read_image`), a PIL image, which is turned upright and converted to RGB as PIL does, or an
            array, uint8 [H, W, 3], RGB.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        UserError: the file cannot be read, or the array is no RGB picture.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"the image is {image.dtype} {list(image.shape)}; give RGB bytes, uint8 [height, width, 3]")
    return image


def read_turned(file: Path | io.BytesIO, name: str) -> tuple[np.ndarray, int]:
    """As `read_image`, a file or its bytes, and how it was turned: the orientation that it notes, 1 to 8.

    Raises:
        UserError: as for `read_image`; `name` is what the error calls the picture.
    """
    with open_picture(file, name) as image:
        with _decoding(image, name):
            turned = orientation(image)
        return _decode(image, name), turned


def read_header(file: Path | io.BytesIO, name: str) -> tuple[tuple[int, int], int]:
    """Height and width of the upright picture, and how it is turned; pixels are read only where the header lacks that.

    Raises:
        UserError: as for `open_picture`.
    """
    with open_picture(file, name) as image, _decoding(image, name):
        return upright_size(image), orientation(image)


def open_picture(file: Path | io.BytesIO, name: str) -> ImageFile.ImageFile:
    """Read the header of a file, or of its bytes; its pixels are read when they are asked for.

    Raises:
        UserError: The file is missing, empty, damaged or no picture, or it would hold more than `MAX_PIXELS` pixels,
            however few bytes it has.
    """
    if isinstance(file, Path):
        _check_file(file)
    image = _open(file, name)
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise UserError(f"{name} has {width} x {height} pixels, more than {MAX_PIXELS:,}; make it smaller")
    return image


def read_upright(image: Image.Image, name: str) -> Image.Image:
    """The pixels of an opened picture as Pillow keeps them, for `to_rgb` to convert all of them or parts.

    Raises:
        UserError: They are truncated or damaged, or do not fit into memory.
    """
    with _decoding(image, name):
        image.load()
        _rotate_upright(image)
        return to_rgb(image) if image.mode in ("I", "F") else image  # whose range is that of the whole picture


def _decode(image: Image.Image, name: str) -> np.ndarray:
    with _decoding(image, name):
        image.load()
        _rotate_upright(image)
        return np.array(to_rgb(image))


@contextlib.contextmanager
def _decoding(image: Image.Image, name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        width, height = image.size
        raise UserError(f"{name} does not fit into memory at {width} x {height} pixels; make it smaller") from error
    except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
        raise UserError(f"{name} is truncated or damaged ({reason(error)}); save or copy it again") from error


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; give a picture") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); check the path and its permissions") from error
    if empty:
        raise UserError(f"{path} is empty; save or copy it again")


def _open(file: Path | io.BytesIO, name: str) -> ImageFile.ImageFile:
    """Read the header only."""
    Image.init()
    formats = [known for known in FORMATS if known in Image.OPEN]  # AVIF is missing from some builds of Pillow
    with _pillow_limit:
        # Pillow refuses far fewer pixels than MAX_PIXELS, by a global that other code in the process may rely on.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=formats)
            image.filename = ""  # else Pillow 13 maps raw TIFFs into memory by their upright size, which scrambles them
            return image
        except Image.UnidentifiedImageError as error:
            raise UserError(f"{name} is no picture that can be read; convert it to PNG or JPEG") from error
        except Exception as error:  # header readers raise a dozen kinds of errors on damaged bytes
            raise UserError(f"{name} is truncated or damaged ({reason(error)}); save or copy it again") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _rotate_upright(image: Image.Image) -> None:
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; see `read_image`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(layered, mask=layered.getchannel("A"))
        return flat
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    if image.mode.startswith("I;16") or image.format == "PPM":  # Pillow opens 16-bit PGM as 32-bit integers
        low, high = 0, 65535
    elif low >= 0 and high <= 255:
        low, high = 0, 1 if image.mode == "F" and high <= 1 else 255
    filled = np.where(finite, values, low)
    return np.rint((filled.astype(np.float64) - low) * (255 / ((high - low) or 1))).astype(np.uint8)
