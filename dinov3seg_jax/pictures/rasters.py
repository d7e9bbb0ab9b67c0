"""Pictures on disk that are read in parts, and label maps that are written in parts."""

import contextlib
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Integer, UInt8

from dinov3seg_jax.data.images import open_picture, read_upright, to_rgb
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.inference.result import PALETTE_NAMES
from dinov3seg_jax.inference.views.tiles import Source

TIFF = (".tif", ".tiff")
BLOCK = 256  # side of a GeoTIFF's tiles
CACHE_MEGABYTES = 64  # of GDAL, for parts of a file that several tiles share


class Raster(Source, Protocol):
    """A picture's file."""

    held_bytes: int  # of its pixels that are in memory all the time

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


def open_raster(path: Path) -> Raster:
    """A picture for reading in parts: a TIFF with rasterio, where that is installed, anything else with Pillow.

    Raises:
        UserError: the file is missing, damaged, or of a kind that cannot be read in parts.
    """
    rasterio = _rasterio(path)
    if rasterio is not None:
        return GeoRaster(path, rasterio)
    if path.suffix.lower() in TIFF:
        raise UserError(
            f"{path} is a TIFF, of which parts are read and written with rasterio; install that with "
            "`pip install rasterio`, or convert the picture to PNG"
        )
    return PillowRaster(path)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width by the header, upright or not."""
    rasterio = _rasterio(path)
    if rasterio is not None:
        with contextlib.closing(GeoRaster(path, rasterio)) as raster:
            return raster.height, raster.width
    with open_picture(path, str(path)) as image:
        return image.height, image.width


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a TIFF that says which place on Earth it shows, as far as rasterio is there to read that."""
    rasterio = _rasterio(path)
    if rasterio is None:
        return False
    with contextlib.closing(GeoRaster(path, rasterio)) as raster:
        return bool(raster.place)


class PillowRaster:
    """A picture that Pillow decodes as a whole, and keeps as it is; what is read of it becomes RGB."""

    def __init__(self, path: Path):
        """Read the file; for what is read, see `data.images.read_image`."""
        with open_picture(path, str(path)) as image:
            self._image = read_upright(image, str(path))
        self.width, self.height = self._image.size
        self.held_bytes = self.width * self.height * (1 if len(self._image.getbands()) == 1 else 4)

    def read(self, top: int, bottom: int, left: int, right: int) -> UInt8[np.ndarray, "h w 3"]:
        """See `tiles.Source`."""
        return np.asarray(to_rgb(self._image.crop((left, top, right, bottom))))

    def close(self) -> None:
        """Let go of the pixels."""
        self._image.close()


class GeoRaster:
    """A TIFF of any size, of which rasterio reads what is asked for.

    Its first three bands are red, green and blue; a single one is grey, or a palette. 16-bit values are divided by 257.
    """

    held_bytes = CACHE_MEGABYTES * 2**20

    def __init__(self, path: Path, rasterio: Any):
        """Open the file."""
        self._rasterio, self._path = rasterio, path
        try:
            path.open("rb").close()  # for a sentence of our own where there is no file
            self._file = rasterio.open(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist; check the path") from error
        except (OSError, rasterio.errors.RasterioError) as error:
            raise UserError(f"{path} cannot be read ({reason(error)}); save or copy it again") from error
        kinds = set(self._file.dtypes[:3])
        if not kinds <= {"uint8", "uint16"}:
            raise UserError(
                f"{path} holds {kinds.pop()} values; convert it to 8 bits, as `gdal_translate -ot Byte -scale` does"
            )
        self.height, self.width = self._file.height, self._file.width
        self._bands = [1, 2, 3] if self._file.count >= 3 else [1]
        self._palette = _palette_of(self._file)

    @property
    def place(self) -> dict[str, Any]:
        """What says where on Earth the picture lies, as arguments of `rasterio.open`; empty if nothing does."""
        file = self._file
        points, system = file.gcps
        if points:
            return {"gcps": points, "crs": system}
        return {} if file.transform.is_identity else {"crs": file.crs, "transform": file.transform}

    def read(self, top: int, bottom: int, left: int, right: int) -> UInt8[np.ndarray, "h w 3"]:
        """See `tiles.Source`."""
        try:
            values = self._file.read(self._bands, window=((top, bottom), (left, right)))
        except self._rasterio.errors.RasterioError as error:
            raise UserError(f"{self._path} is damaged ({reason(error)}); save or copy it again") from error
        if self._palette is not None:
            return self._palette[values[0]]
        if values.dtype == np.uint16:
            values = np.rint(values / 257).astype(np.uint8)
        return np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, -1)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


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
    """A tiled GeoTIFF: a pixel's value is its class, and the picture's place on Earth is kept."""

    def __init__(self, path: Path, picture: GeoRaster, colors: UInt8[np.ndarray, "t 3"]):
        """Begin the file."""
        indexed = len(colors) <= PALETTE_NAMES
        self._kind = np.uint8 if indexed else np.uint16
        self._rasterio, self._path = picture._rasterio, path
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


def _rasterio(path: Path) -> Any:
    """The module, for a TIFF and where it is installed."""
    if path.suffix.lower() not in TIFF:
        return None
    # Read from here when GDAL first needs it, in whatever thread; `rasterio.Env` would have to be around every read.
    os.environ.setdefault("GDAL_CACHEMAX", str(CACHE_MEGABYTES))
    try:
        import rasterio
        import rasterio.errors
    except ImportError:
        return None
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # most TIFFs are not
    return rasterio


def _palette_of(file: Any) -> UInt8[np.ndarray, "n 3"] | None:
    """A colour for each value of the file's dtype, black where the file has none."""
    if file.count != 1:
        return None
    try:
        listed = file.colormap(1)
    except ValueError:  # it has none
        return None
    palette = np.zeros((np.iinfo(file.dtypes[0]).max + 1, 3), np.uint8)
    for index, color in listed.items():
        palette[index] = color[:3]
    return palette
