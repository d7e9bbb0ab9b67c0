"""Pictures with any number of bands, of any numbers, and of a place on Earth: read with rasterio, in parts."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Num, UInt8

from dinov3seg_jax.data import tiff_tags
from dinov3seg_jax.data.paper import AS_STORED, TURNS, UPRIGHT, on_white
from dinov3seg_jax.data.stretch import Limits, Part, Stretch, black_and_white, full_range, grid_step, to_bytes
from dinov3seg_jax.data.tiff_tags import TiffTags
from dinov3seg_jax.errors import UserError, note, reason

CACHE_MEGABYTES = 64  # of GDAL, for parts of a file that several tiles share
ROWS = 512  # that are shown together
PART = 2**20  # pixels that are looked at together, roughly


PLAIN_COLORS = (["gray"], ["red", "green", "blue"], ["red", "green", "blue", "alpha"])


class View(NamedTuple):
    """How a picture is to be shown."""

    bands: tuple[int, ...] = ()  # that are red, green and blue, or grey, from 1; empty: as the file says
    stretch: Stretch | None = None  # None: as `images.read_image` says

    def question(self) -> dict[str, Any]:
        """What results depend on, by the options that a user knows it by, as plain values."""
        return {"--bands": list(self.bands) or None, "--stretch": None if self.stretch is None else str(self.stretch)}


AS_IT_IS = View()


def parse_bands(text: str) -> tuple[int, ...]:
    """`4,3,2` or `4`.

    Raises:
        UserError: it is something else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UserError(f"--bands is '{text}'; write numbers as in 4,3,2, red, green and blue, or of one band as in 1")
    return check_bands(list(map(int, words)))


def check_bands(bands: Sequence[int]) -> tuple[int, ...]:
    """Numbers of bands, or none.

    Raises:
        UserError: they are not one or three, from 1.
    """
    if len(bands) not in (0, 1, 3) or min(bands, default=1) < 1:
        raise UserError(
            f"--bands is {','.join(map(str, bands))}; name three bands, red, green and blue, or one, counted from 1"
        )
    return tuple(bands)


class Scene:
    """A file of which rasterio reads what is asked for, as RGB bytes.

    A picture without a place on Earth is turned upright and laid on white. One with a place is not turned, and where
    it is transparent it has no data.

    Attributes:
        height, width: as it is shown.
        georeferenced: whether it says which place on Earth it shows.
        whole: whether every pixel has data, as far as the header tells.
        is_plain: whether there is nothing to it but grey or colours of 8 bits.
    """

    held_bytes = CACHE_MEGABYTES * 2**20

    def __init__(
        self,
        source: Path | bytes,
        name: str,
        view: View,
        rasterio: Any,
        tags: TiffTags | None,
        driver: str = "GTiff",
    ):
        """Open the file, or its bytes; `tags` are those of a TIFF, where they are known.

        Raises:
            UserError: it is damaged, or cannot be shown so.
        """
        self._rasterio, self._name, self._driver = rasterio, name, driver
        self._stretch, self._tags = view.stretch, tags
        self._memory: Any = rasterio.MemoryFile(source) if isinstance(source, bytes) else None
        try:
            self.file = self._open(source)
        except (OSError, rasterio.errors.RasterioError) as error:
            self.close()
            raise UserError(f"{name} cannot be read ({reason(error)}); save or copy it again") from error
        try:
            self._understand(view)
        except BaseException:
            self.close()
            raise

    def _open(self, source: Path | bytes) -> Any:
        # GDAL has a sense of its own for some names, but for no whole path.
        path = source.absolute() if isinstance(source, Path) else self._memory.name
        if self._tags is not None and self._tags.page != 0:
            path = f"GTIFF_DIR:off:{self._tags.offset}:{path}"
        return self._rasterio.open(path, driver=self._driver)

    def _understand(self, view: View) -> None:
        file, tags = self.file, self._tags
        self.georeferenced = bool(self.place)
        self.orientation = UPRIGHT if self.georeferenced or tags is None else tags.orientation
        self._turn = TURNS.get(self.orientation, AS_STORED)
        self.height, self.width = self._turn.size(file.height, file.width)
        colors = [color.name for color in file.colorinterp]
        usual = colors in PLAIN_COLORS and set(file.dtypes) == {"uint8"}
        self._alpha = colors.index("alpha") + 1 if "alpha" in colors else None
        if tags is not None and tags.alpha is not None:
            self._alpha = tags.alpha + 1
        self._premultiplied = tags is not None and tags.premultiplied
        self._guess = ""  # what a note says of the bands
        self._bands = self._chosen(view.bands, colors)
        self._inverted = file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"  # then GDAL has a palette, too
        self._palette = _palette_of(file) if self._bands == [1] and not self._inverted else None
        self._kinds = {np.dtype(file.dtypes[band - 1]) for band in self._bands}
        if any(kind.kind not in "uif" for kind in self._kinds):
            raise UserError(
                f"{self._name} holds {self._kinds.pop()} values; convert them to real numbers, such as amplitudes"
            )
        bits = {int(file.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", 0)) for band in self._bands}
        self._bits = bits.pop() if len(bits) == 1 else 0
        self._nodata = [file.nodatavals[band - 1] for band in self._bands]
        flags = {flag.name for flag_set in file.mask_flag_enums for flag in flag_set}
        self.masked = bool(flags - {"all_valid"}) and (self.georeferenced or "alpha" not in flags)
        self.whole = not self.masked and all(kind.kind != "f" for kind in self._kinds)
        self.is_plain = usual and not self.georeferenced and not self.masked
        self._limits: Limits | None = None

    def _chosen(self, wanted: tuple[int, ...], colors: list[str]) -> list[int]:
        count = self.file.count
        if wanted:
            if max(wanted) > count:
                raise UserError(
                    f"{self._name} has {count} band{'s' if count > 1 else ''}, so --bands cannot name {max(wanted)}; "
                    f"name bands from 1 to {count}"
                )
            return list(wanted)
        if {"red", "green", "blue"} <= set(colors):
            return [colors.index(color) + 1 for color in ("red", "green", "blue")]
        shown = [band for band in range(1, count + 1) if band != self._alpha]
        chosen = shown[:3] if len(shown) >= 3 else shown[:1]
        if not chosen:
            raise UserError(f"{self._name} holds nothing but transparency; give a picture")
        colors_are_named = self._tags is not None and self._tags.photometric == tiff_tags.RGB
        if len(shown) not in (1, 3) and not colors_are_named:
            taken = "three are shown as red, green and blue" if len(chosen) == 3 else "is shown in grey"
            self._guess = f"{self._name} has {len(shown)} bands, of which the first {taken}; --bands chooses others"
        return chosen

    @property
    def place(self) -> dict[str, Any]:
        """What says where on Earth the picture lies, as arguments of `rasterio.open`; empty if nothing does."""
        points, system = self.file.gcps
        if points:
            return {"gcps": points, "crs": system}
        transform = self.file.transform
        if not transform.is_identity:
            return {"crs": self.file.crs, "transform": transform}
        if self.file.rpcs:
            return {"rpcs": self.file.rpcs}
        return {"crs": self.file.crs} if self.file.crs else {}

    def read(self, top: int, bottom: int, left: int, right: int) -> UInt8[np.ndarray, "h w 3"]:
        """See `tiles.Source`."""
        window = self._turn.stored((top, bottom, left, right), self.file.height, self.file.width)
        return np.ascontiguousarray(self._turn.apply(self._read(window)))

    def valid(self, top: int, bottom: int, left: int, right: int) -> Bool[np.ndarray, "h w"]:
        """Which pixels have data."""
        if self.whole:
            return np.ones((bottom - top, right - left), bool)
        window = self._turn.stored((top, bottom, left, right), self.file.height, self.file.width)
        return self._turn.apply(self._mask(window, self._numbers(window)))

    def read_all(self) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
        """The whole picture, and which pixels have data; None if all."""
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        valid = np.ones((self.height, self.width), bool)
        for top in range(0, self.height, ROWS):  # floats take several times the room
            rows = top, min(top + ROWS, self.height)
            rgb[slice(*rows)] = self.read(*rows, 0, self.width)
            valid[slice(*rows)] = self.valid(*rows, 0, self.width)
        return rgb, None if valid.all() else valid

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(AttributeError):  # it was not opened
            self.file.close()
        if self._memory is not None:
            self._memory.close()

    def _read(self, window: tuple[int, int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
        numbers = self._numbers(window)
        if self._palette is not None:
            colors = self._palette[numbers[..., 0]]
        else:
            shades = to_bytes(numbers, self._range())
            if self._inverted:
                shades = 255 - shades
            colors = np.broadcast_to(shades, (*shades.shape[:2], 3))
        if self._alpha is None:
            return colors
        alpha = self._get([self._alpha], window)[..., 0]
        limits = full_range(alpha.dtype, self._bits) or (0, 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max)
        return on_white(colors, to_bytes(alpha, limits), self._premultiplied)

    def _numbers(self, window: tuple[int, int, int, int]) -> Num[np.ndarray, "h w c"]:
        return self._get(self._bands, window)

    def _get(self, bands: list[int], window: tuple[int, int, int, int]) -> Num[np.ndarray, "h w c"]:
        top, bottom, left, right = window
        with self._undamaged():
            values = self.file.read(bands, window=((top, bottom), (left, right)))
        return np.moveaxis(values, 0, -1)

    @contextlib.contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except self._rasterio.errors.RasterioError as error:
            raise UserError(
                f"{self._name} is damaged ({reason(error.__cause__ or error)}); save or copy it again"
            ) from error

    def _mask(self, window: tuple[int, int, int, int], numbers: Num[np.ndarray, "h w c"]) -> Bool[np.ndarray, "h w"]:
        top, bottom, left, right = window
        valid = np.ones(numbers.shape[:2], bool)
        if self.masked:
            with self._undamaged():
                valid = self.file.dataset_mask(window=((top, bottom), (left, right))) > 0
        if numbers.dtype.kind == "f":
            valid &= np.isfinite(numbers).any(axis=-1)
        return valid

    def _range(self) -> Limits:
        """Black and white, found when a pixel is first asked for."""
        if self._limits is None:
            if self._guess:
                note(self._guess)
            kind, step = np.result_type(*self._kinds), grid_step(self.file.height, self.file.width)
            self._limits = black_and_white(self._name, kind, self._bits, self._stretch, self._parts, step)
        return self._limits

    def _parts(self) -> Iterator[Part]:
        """All numbers as they are stored, and which of them count."""
        height, width = self.file.height, self.file.width
        rows, columns = _part_size(self.file.block_shapes[0], width)
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                window = top, min(top + rows, height), left, min(left + columns, width)
                numbers = self._numbers(window)
                counting = np.isfinite(numbers)
                if not self.whole:
                    counting &= self._mask(window, numbers)[..., None]
                for place, nodata in enumerate(self._nodata):
                    if nodata is not None:
                        counting[..., place] &= numbers[..., place] != nodata
                yield Part(numbers, counting, top, left)


def _part_size(block: tuple[int, int], width: int) -> tuple[int, int]:
    """Rows and columns of about `PART` pixels, in whole blocks of the file if it can be, so that none is read twice."""
    rows, columns = block
    blocks = PART // (rows * columns)
    if not blocks:
        return max(PART // columns, 1), columns
    across = min(blocks, -(-width // columns))
    return blocks // across * rows, across * columns


def import_rasterio() -> Any:
    """The module, where it is installed; else None."""
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
    try:
        listed = file.colormap(1)
    except ValueError:  # it has none
        return None
    palette = np.zeros((np.iinfo(file.dtypes[0]).max + 1, 3), np.uint8)
    for index, color in listed.items():
        palette[index] = color[:3]
    return palette
