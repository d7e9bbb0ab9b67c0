"""Which library reads a file: Pillow, or rasterio where Pillow cannot, or not right."""

import io
from pathlib import Path
from typing import Any, BinaryIO

from dinov3seg_jax.data.scenes import AS_IT_IS, Scene, View, import_rasterio
from dinov3seg_jax.data.tiff_tags import BIG_ENDIAN_LARGE, TiffTags, is_tiff, read_tags
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.places import content_of, is_remote, local_copy

LARGE = 64 * 2**20  # bytes of a file in a bucket that is read in parts, from a copy on this machine
HEAD = 64  # bytes that tell a format
JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
JPEG2000_HEADERS = 2**16  # bytes, more than lie before the pixels
GEOGRAPHY_IN_JPEG2000 = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), b"gml.root-instance")  # GeoJP2 and GML
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
RAW_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "kdc", "mef", "mos", "mrw", "nef", "nrw"),
        *("orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
INSTALL_RASTERIO = "`pip install rasterio`"


def in_reach(source: Path | bytes) -> Path | bytes:
    """What decoders can open: a file in a bucket as its bytes or, where those are many, as a copy on this machine.

    Raises:
        UserError: it cannot be read.
    """
    if isinstance(source, bytes) or not is_remote(source):
        return source
    try:
        if source.stat().st_size > LARGE:
            return local_copy(source)
        content = content_of(source)
    except OSError as error:
        raise _unread(source, error) from error
    if not content:
        raise UserError(f"{source} is empty; save or copy it again")
    return content


def open_scene(source: Path | bytes, name: str, view: View = AS_IT_IS, in_parts: bool = False) -> Scene | None:
    """A file that rasterio is to read, if Pillow cannot, or cannot do it right; None if Pillow can.

    Args:
        source: the file, or its bytes.
        name: what an error calls it.
        view: how it is to be shown.
        in_parts: whether rasterio is to read what both can.

    Raises:
        UserError: the file is missing, empty or damaged; or only rasterio can read it, which is not installed.
    """
    source = in_reach(source)
    head = first_bytes(source)
    if isinstance(source, Path) and source.suffix.lower() in RAW_SUFFIXES:
        raise UserError(f"{name} is a camera's raw picture; develop it to a TIFF, PNG or JPEG first")
    if is_tiff(head):
        return _open_tiff(source, name, view, in_parts)
    rasterio = import_rasterio() if head.startswith(JPEG2000) else None
    if rasterio is not None:
        scene = _open_jpeg2000(source, name, view, rasterio)
        if scene is not None:
            return scene
    if view.bands:
        raise UserError(
            f"{name} is no raster with bands to choose from; leave --bands out"
            if not head.startswith(JPEG2000)
            else f"{name} is a JPEG 2000, of which rasterio reads single bands; install that with {INSTALL_RASTERIO}"
        )
    return None


def _open_tiff(source: Path | bytes, name: str, view: View, in_parts: bool) -> Scene | None:
    with _opened(source) as file:
        tags = read_tags(file, name)
    large = first_bytes(source).startswith(BIG_ENDIAN_LARGE)
    if tags is None and not large:  # damaged
        return None
    pillow = tags is not None and tags.pillow_is_right and tags.page >= 0 and not view.bands
    plain = tags is not None and tags.is_plain and not view.bands and not in_parts
    if plain and isinstance(source, bytes):
        return None
    rasterio = import_rasterio()
    able = tags is None or tags.rasterio_is_right
    if able and rasterio is not None:
        return _of_more(source, name, view, rasterio, tags) if plain else Scene(source, name, view, rasterio, tags)
    if pillow:
        return None
    what = f"{name} is a TIFF of a kind ({tags or 'big-endian BigTIFF'}) that"
    if able:
        raise UserError(f"{what} rasterio reads; install that with {INSTALL_RASTERIO}, or convert it to 8-bit RGB")
    raise UserError(f"{what} is not read; convert it to 8-bit RGB")


def _of_more(source: Path | bytes, name: str, view: View, rasterio: Any, tags: TiffTags | None) -> Scene | None:
    """A TIFF that by its tags is nothing more than a picture, if files beside it give it a place or a mask."""
    try:
        scene = Scene(source, name, view, rasterio, tags)
    except UserError:  # Pillow reads more kinds of bytes
        return None
    if scene.georeferenced or scene.masked:
        return scene
    scene.close()
    return None


def _open_jpeg2000(source: Path | bytes, name: str, view: View, rasterio: Any) -> Scene | None:
    """Where it has a place on Earth, or Pillow does not read it or takes its bands for something else."""
    try:
        scene = Scene(source, name, view, rasterio, None, driver="JP2OpenJPEG")
    except UserError:
        if view.bands:
            raise
        return None  # what Pillow says of it is as good
    if scene.is_plain and not view.bands:
        scene.close()
        return None
    return scene


def says_where_it_is(source: Path | bytes, name: str) -> bool:
    """Whether a TIFF or a JPEG 2000 tells which place on Earth it shows, whatever can read that."""
    head = first_bytes(source)
    with _opened(source) as file:
        if is_tiff(head):
            tags = read_tags(file, name)
            return tags is not None and tags.georeferenced
        if head.startswith(JPEG2000):
            content = file.read(JPEG2000_HEADERS)
            return any(mark in content for mark in GEOGRAPHY_IN_JPEG2000)
    return False


def prepare_heif(head: bytes, name: str) -> None:
    """Teach Pillow a format when a file of it is met.

    Raises:
        UserError: pillow-heif is not installed.
    """
    if head[4:8] != b"ftyp" or head[8:12] not in HEIF_BRANDS or b"avif" in head:
        return
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError(
            f"{name} is a HEIC picture, which pillow-heif reads; install that with `pip install pillow-heif`, or "
            "convert the picture to JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def first_bytes(source: Path | bytes) -> bytes:
    """The first bytes, by which a format is known.

    Raises:
        UserError: there are none.
    """
    if isinstance(source, bytes):
        return source[:HEAD]
    try:
        with source.open("rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError) as error:
        raise _unread(source, error) from error
    if not head:
        raise UserError(f"{source} is empty; save or copy it again")
    return head


def _unread(source: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{source} does not exist; check the path")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{source} is a folder; give a picture")
    return UserError(f"{source} cannot be read ({reason(error)}); check the path and its permissions")


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
