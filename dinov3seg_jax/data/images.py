"""Any picture a user has, as 8-bit RGB, or one sentence that says why not."""

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, TiffImagePlugin

from dinov3seg_jax.data.arrays import from_array, is_array
from dinov3seg_jax.data.deep import deep_pixels, is_deep, show_full_page, to_rgb
from dinov3seg_jax.data.orientation import orientation, upright_size
from dinov3seg_jax.data.paper import Pixels, load_upright
from dinov3seg_jax.data.readers import HEAD, first_bytes, in_reach, open_scene, prepare_heif
from dinov3seg_jax.data.scenes import AS_IT_IS, Scene, View
from dinov3seg_jax.data.stretch import Stretch
from dinov3seg_jax.data.tiff_tags import tags_of
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import expanded
from dinov3seg_jax.places import is_remote

MAX_PIXELS = 400_000_000
GIVEN = "the image"  # what an error calls one without a path

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
    "HEIF": (".heic", ".heif", ".hif"),  # with pillow-heif
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

    The EXIF rotation is applied, but not to a raster with a place on Earth. Transparency is dropped by laying the
    picture on white. Of an animation or a multi-page file the first picture is read that is no reduced copy. Colour
    profiles are not applied. 16-bit values are divided by 257, and those of fewer bits by what makes their largest 255.
    32-bit integers outside 0..255, signed ones too, and floats outside both 0..1 (times 255) and 0..255 (as they are),
    are stretched from their smallest to their largest value, in all colours alike and without what stands for no data.
    Values that are not finite become black.

    Args:
        path: A file in one of `FORMATS`, recognised by its content, with at most `MAX_PIXELS` pixels. Of a TIFF with
            more than three bands that are no colours the first three are read.

    Returns:
        uint8 [H, W, 3], RGB, 0..255, writable.

    Raises:
        UserError: The file is missing, empty, damaged, too large, or no picture; or reading it takes a library that is
            not installed.
    """
    return read_pixels(path).rgb


def read_pixels(path: str | Path, view: View = AS_IT_IS) -> Pixels:
    """The same, and which pixels have data, of a raster that says so.

    Args:
        path: as for `read_image`.
        view: which bands are read, and what is black and white.

    Raises:
        UserError: as for `read_image`, or the file has no such bands.
    """
    path = expanded(path)
    return pixels_of(in_reach(path), str(path), view)


def read_turned(source: Path | bytes, name: str) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """As `read_image`, a file or its bytes, and how it was turned: the orientation that it notes, 1 to 8.

    Raises:
        UserError: as for `read_image`; `name` is what the error calls the picture.
    """
    source = in_reach(source)
    scene = open_scene(source, name)
    if scene is not None:
        with contextlib.closing(scene):
            return _all_of(scene, name).rgb, scene.orientation
    with open_picture(source, name) as image:
        with _decoding(name, *image.size[::-1]):
            turned = orientation(image)
        return _decode(image, name).rgb, turned


def read_header(source: Path | bytes, name: str) -> tuple[tuple[int, int], int]:
    """Height and width of the upright picture, and how it is turned; pixels are read only where the header lacks that.

    Raises:
        UserError: as for `open_picture`.
    """
    source = in_reach(source)
    scene = open_scene(source, name)
    if scene is not None:
        with contextlib.closing(scene):
            return (scene.height, scene.width), scene.orientation
    with open_picture(source, name) as image:
        return header_of(image, name)


def header_of(image: ImageFile.ImageFile, name: str) -> tuple[tuple[int, int], int]:
    """The same of a picture that Pillow has opened."""
    with _decoding(name, *image.size[::-1]):
        return upright_size(image), orientation(image)


def as_array(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in any of the accepted forms as RGB bytes; see `as_pixels`."""
    return as_pixels(image).rgb


def as_pixels(image: Any) -> Pixels:
    """A picture in any of the accepted forms, by the same rules whatever the form.

    Args:
        image: a file's path (see `read_image`); a file's content, as bytes or in a file that is open for reading them;
            a PIL image; or an array (see `arrays.from_array`).

    Returns:
        RGB bytes, upright, and where there are data.

    Raises:
        UserError: the picture cannot be read, or it is no picture.
    """
    if isinstance(image, str | os.PathLike):
        return read_pixels(image if is_remote(image) else os.fsdecode(image))
    if isinstance(image, Image.Image):
        return _of_pillow(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return pixels_of(_content(bytes(image)), GIVEN, AS_IT_IS)
    if is_array(image):
        return Pixels(from_array(image))
    if hasattr(image, "read"):
        return pixels_of(_content(_read_file(image)), GIVEN, AS_IT_IS)
    kind = "None" if image is None else f"a {type(image).__name__}"
    raise UserError(f"the image is {kind}; give a path, a file's bytes, a PIL image, or an array [height, width, 3]")


def _of_pillow(image: Image.Image) -> Pixels:
    if not all(image.size):
        raise UserError(f"the image has {image.width} x {image.height} pixels; give one that is not empty")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tile and not tags_of(image).pillow_is_right:
        raise UserError(f"{GIVEN} is a TIFF that Pillow reads wrongly ({tags_of(image)}); give its path")
    return _decode(image, GIVEN)


def _content(content: bytes) -> bytes:
    if not content:
        raise UserError(f"{GIVEN} is empty: no byte of it is left to read; give all of a picture's file")
    return content


def _read_file(file: Any) -> bytes:
    try:
        content = file.read()
    except Exception as error:  # closed, or open for writing
        raise UserError(f"{GIVEN} is a file that cannot be read ({reason(error)}); open it with 'rb'") from error
    if not isinstance(content, bytes):
        raise UserError(f"{GIVEN} is a file that is open as text; open it with 'rb'")
    return content


def pixels_of(source: Path | bytes, name: str, view: View) -> Pixels:
    """As `read_pixels`, of a file of this machine or a file's bytes; `name` is what an error calls it."""
    scene = open_scene(source, name, view)
    if scene is not None:
        with contextlib.closing(scene):
            return _all_of(scene, name)
    with open_picture(source, name) as image:
        return _decode(image, name, view.stretch)


def _all_of(scene: Scene, name: str) -> Pixels:
    check_size(scene.height, scene.width, name)
    with _fitting(name, scene.height, scene.width):
        return Pixels(*scene.read_all(), scene.place)


def open_picture(file: Path | bytes | io.BytesIO, name: str) -> ImageFile.ImageFile:
    """Read the header of a file, or of its bytes; its pixels are read when they are asked for.

    Raises:
        UserError: The file is missing, empty, damaged or no picture, or it would hold more than `MAX_PIXELS` pixels,
            however few bytes it has.
    """
    file = file if isinstance(file, io.BytesIO) else in_reach(file)
    image = _open(io.BytesIO(file) if isinstance(file, bytes) else file, name)
    try:
        show_full_page(image)
    except Exception as error:
        raise UserError(f"{name} is truncated or damaged ({reason(error)}); save or copy it again") from error
    width, height = image.size
    try:
        check_size(height, width, name)
    except UserError:
        image.close()
        raise
    return image


def check_size(height: int, width: int, name: str) -> None:
    """Refuse what is too large to be read as a whole."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{name} has {width} x {height} pixels, more than {MAX_PIXELS:,}; make it smaller")


def read_upright(image: Image.Image, name: str, stretch: Stretch | None = None) -> Image.Image:
    """The pixels of an opened picture as Pillow keeps them, for `to_rgb` to convert all of them or parts.

    Raises:
        UserError: They are truncated or damaged, or do not fit into memory.
    """
    if stretch is not None or is_deep(image):  # whose range is that of the whole picture
        return Image.fromarray(_decode(image, name, stretch).rgb)
    with _decoding(name, *image.size[::-1]):
        return load_upright(image)


def _decode(image: Image.Image, name: str, stretch: Stretch | None = None) -> Pixels:
    with _decoding(name, *image.size[::-1]):
        if stretch is None and not is_deep(image):
            return Pixels(np.array(to_rgb(load_upright(image))))
        return deep_pixels(image, name, stretch)


@contextlib.contextmanager
def _fitting(name: str, height: int, width: int) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise UserError(f"{name} does not fit into memory at {width} x {height} pixels; make it smaller") from error


@contextlib.contextmanager
def _decoding(name: str, height: int, width: int) -> Iterator[None]:
    try:
        with _fitting(name, height, width):
            yield
    except UserError:
        raise
    except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
        raise UserError(f"{name} is truncated or damaged ({reason(error)}); save or copy it again") from error


def _open(file: Path | io.BytesIO, name: str) -> ImageFile.ImageFile:
    """Read the header only."""
    Image.init()
    prepare_heif(first_bytes(file) if isinstance(file, Path) else file.getvalue()[:HEAD], name)
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
