"""Pictures on disk that are read in parts, and label maps that are written in parts."""

import contextlib
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from dinov3seg_jax.data.deep import to_rgb
from dinov3seg_jax.data.images import header_of, open_picture, read_upright
from dinov3seg_jax.data.readers import first_bytes, in_reach, open_scene, says_where_it_is
from dinov3seg_jax.data.scenes import AS_IT_IS, Scene, View, import_rasterio
from dinov3seg_jax.data.stretch import Stretch
from dinov3seg_jax.data.tiff_tags import is_tiff
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import NODATA_NAMES, PALETTE_NAMES
from dinov3seg_jax.inference.views.tiles import Source

BLOCK = 256  # side of a GeoTIFF's tiles


class Raster(Source, Protocol):
    """A picture's file."""

    held_bytes: int  # of its pixels that are in memory all the time
    whole: bool  # whether every pixel has data

    @property
    def place(self) -> dict[str, Any]:
        """What says where on Earth it lies, as arguments of `rasterio.open`; empty if nothing does."""
        ...

    def valid(self, top: int, bottom: int, left: int, right: int) -> Bool[np.ndarray, "h w"]:
        """Which pixels have data."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class LabelFile(Protocol):
    """A label map that is being written, from top to bottom."""

    def write(self, rows: Integer[np.ndarray, "n width"]) -> None:
        """The next rows."""
        ...

    def close(self) -> None:
        """Complete the file."""
        ...


class Look(NamedTuple):
    """What a picture's header says."""

    height: int  # as it is shown
    width: int
    georeferenced: bool  # as far as rasterio is there to read that
    place_is_lost: bool  # whether it says where on Earth it lies, and that cannot be kept


def open_raster(path: Path, view: View = AS_IT_IS) -> Raster:
    """A picture for reading in parts: with rasterio where that can, anything else with Pillow.

    Raises:
        UserError: the file is missing, damaged, or of a kind that cannot be read in parts.
    """
    source = in_reach(path)
    scene = open_scene(source, str(path), view, in_parts=True)
    if scene is not None:
        return scene
    if is_tiff(first_bytes(source)) and import_rasterio() is None:
        raise UserError(
            f"{path} is a TIFF, of which parts are read and written with rasterio; install that with "
            "`pip install rasterio`, or convert the picture to PNG"
        )
    return PillowRaster(source, str(path), view.stretch)


def look_at(path: Path, view: View = AS_IT_IS, source: Path | bytes | None = None) -> Look:
    """What can be known of a picture without its pixels; `source` is what `in_reach` gave for it, if it was asked.

    Raises:
        UserError: the file is missing, damaged, or cannot be shown so.
    """
    source, name = in_reach(path) if source is None else source, str(path)
    scene = open_scene(source, name, view)
    if scene is not None:
        with contextlib.closing(scene):
            return Look(scene.height, scene.width, scene.georeferenced, place_is_lost=False)
    with open_picture(source, name) as image:
        size, _ = header_of(image, name)
    return Look(*size, georeferenced=False, place_is_lost=says_where_it_is(source, name))


class PillowRaster:
    """A picture that Pillow decodes as a whole, and keeps as it is; what is read of it becomes RGB."""

    whole = True
    place: ClassVar[dict[str, Any]] = {}

    def __init__(self, source: Path | bytes, name: str, stretch: Stretch | None = None):
        """Read the file; for what is read, see `data.images.read_image`."""
        with open_picture(source, name) as image:
            self._image = read_upright(image, name, stretch)
        self.width, self.height = self._image.size
        self.held_bytes = self.width * self.height * (1 if len(self._image.getbands()) == 1 else 4)

    def read(self, top: int, bottom: int, left: int, right: int) -> UInt8[np.ndarray, "h w 3"]:
        """See `tiles.Source`."""
        return np.asarray(to_rgb(self._image.crop((left, top, right, bottom))))

    def valid(self, top: int, bottom: int, left: int, right: int) -> Bool[np.ndarray, "h w"]:
        """All of them."""
        return np.ones((bottom - top, right - left), bool)

    def close(self) -> None:
        """Let go of the pixels."""
        self._image.close()


class PngLabels:
    """An indexed PNG, or 16-bit grey where there are more than 256 classes: a pixel's value is its class.

    Pillow writes whole pictures only. Rows are stored as differences from the row above (filter 2 of the format).
    """

    def __init__(self, path: Path, height: int, width: int, colors: UInt8[np.ndarray, "t 3"]):
        """Begin the file; `colors` are those of the classes."""
        self._file = path.open("wb")
        self._kind = np.dtype(np.uint8 if len(colors) <= PALETTE_NAMES else ">u2")
        self._above = np.zeros((1, width * self._kind.itemsize), np.uint8)
        self._deflate = zlib.compressobj()
        indexed = self._kind.itemsize == 1
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 if indexed else 16, 3 if indexed else 0, 0, 0, 0))
        if indexed:
            self._chunk(b"PLTE", colors.tobytes())

    def write(self, rows: Integer[np.ndarray, "n width"]) -> None:
        """The next rows."""
        values = rows.astype(self._kind).view(np.uint8)
        filtered = np.full((len(rows), 1 + values.shape[1]), 2, np.uint8)
        filtered[:, 1:] = values - np.concatenate([self._above, values[:-1]])
        self._above = values[-1:].copy()
        if compressed := self._deflate.compress(filtered.tobytes()):
            self._chunk(b"IDAT", compressed)

    def close(self) -> None:
        """Complete the file."""
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")
        self._file.close()

    def _chunk(self, name: bytes, content: bytes) -> None:
        checksum = zlib.crc32(name + content)
        self._file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum))


class GeoLabels:
    """A tiled GeoTIFF: a pixel's value is its class, and the picture's place on Earth is kept.

    Labels of -1 become the largest value, which stands for no data.
    """

    def __init__(self, path: Path, picture: Scene, colors: UInt8[np.ndarray, "t 3"]):
        """Begin the file."""
        indexed = len(colors) <= NODATA_NAMES
        self._kind = np.uint8 if indexed else np.uint16
        self._rasterio, self._path = import_rasterio(), path
        self._file = self._rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=picture.height,
            width=picture.width,
            count=1,
            dtype=self._kind,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="deflate",
            bigtiff="if_safer",
            nodata=255 if indexed else 65535,
            **picture.place,
        )
        if indexed:
            self._file.write_colormap(1, {index: (*map(int, color), 255) for index, color in enumerate(colors)})
        self._top = self._checksum = 0

    def write(self, rows: Integer[np.ndarray, "n width"]) -> None:
        """The next rows."""
        window = ((self._top, self._top + len(rows)), (0, rows.shape[1]))
        values = rows.astype(self._kind)
        self._file.write(values, 1, window=window)
        self._top += len(rows)
        self._checksum = zlib.crc32(values.tobytes(), self._checksum)

    def close(self) -> None:
        """Complete the file, and see whether it is: rasterio does not say that the last of it found no room.

        Raises:
            OSError: it is not.
        """
        self._file.close()
        if self._top < self._file.height:  # given up
            return
        checksum = 0
        with self._rasterio.open(self._path) as file:
            for top in range(0, file.height, BLOCK):
                rows = file.read(1, window=((top, min(top + BLOCK, file.height)), (0, file.width)))
                checksum = zlib.crc32(rows, checksum)
        if checksum != self._checksum:
            raise OSError("the label map cannot be read back, as on a full disk")
