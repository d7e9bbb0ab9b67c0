"""What a TIFF says of its pixels: which numbers are colours, which are none, and where on Earth they lie."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import PIL
from PIL import TiffImagePlugin

from dinov3seg_jax.errors import UserError

BIG_ENDIAN_LARGE = b"MM\0+"  # which Pillow does not know
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", BIG_ENDIAN_LARGE)
MOST_PAGES = 10_000  # a damaged file's pages can go in a circle

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
PILLOW = int(PIL.__version__.split(".")[0])
MEANINGS = {0: "grey", 1: "grey", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
RAW_COLORS = (32803, 34892)  # of a camera's sensor
JPEG = 7
ASSOCIATED, UNASSOCIATED = 1, 2  # alpha
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
GEOGRAPHY = (33550, 33922, 34264, 34735, 50844)  # scale, tie points, transform, GeoTIFF keys, polynomials
WIDTH, DNG_VERSION = 256, 50706
REDUCED = 1  # a flag: the page is another one, made small


@dataclasses.dataclass(frozen=True)
class TiffTags:
    """Of the page that holds the picture.

    Attributes:
        page: its number among the pages in a row; -1 for one that hangs below another.
        offset: where it begins in the file, in bytes.
        photometric: what the samples mean, by the format's numbers.
        samples: of each pixel.
        bits: of each sample, the largest.
        kind: UNSIGNED, SIGNED, FLOAT or another number.
        planar: whether the samples of a pixel lie apart.
        compression: by the format's numbers.
        extra: what each sample beyond the colours is; 0 says nothing.
        orientation: 1 to 8, as in EXIF.
        nodata: the value that stands for no data, as GDAL writes it.
        georeferenced: whether the page says which place on Earth it shows.
        raw: whether it comes from a camera's sensor.
        reduced: whether it is a small copy of another page.
        big_endian: whether the larger byte of a number comes first.
        subsampled: whether several pixels share their colour, of YCbCr.
    """

    page: int
    offset: int
    photometric: int
    samples: int
    bits: int
    kind: int
    planar: bool
    compression: int
    extra: tuple[int, ...]
    orientation: int
    nodata: float | None
    georeferenced: bool
    raw: bool
    reduced: bool
    big_endian: bool
    subsampled: bool

    def __str__(self) -> str:
        """In words."""
        meaning = MEANINGS.get(self.photometric, f"photometric {self.photometric}")
        kind = {UNSIGNED: "integers", SIGNED: "signed integers", FLOAT: "floats"}.get(self.kind, "other numbers")
        apart = ", in planes" if self.planar else ""
        return f"{meaning}, {self.samples} x {self.bits}-bit {kind}{apart}"

    @property
    def alpha(self) -> int | None:
        """The sample that holds it, from 0."""
        if self.photometric == RGB and self.samples == 4 and not self.extra:  # common, if not by the book
            return 3
        first = self.samples - len(self.extra)
        return next(
            (first + place for place, kind in enumerate(self.extra) if kind in (ASSOCIATED, UNASSOCIATED)), None
        )

    @property
    def premultiplied(self) -> bool:
        """Whether colours are stored as they look on black."""
        return self.alpha is not None and ASSOCIATED in self.extra

    @property
    def pillow_is_right(self) -> bool:
        """Whether Pillow gives the values as they are. It has no picture with more than 8 bits but grey ones.

        Of 16-bit colours it gives either byte (see `deep_pixels`).
        """
        if self.compression not in TiffImagePlugin.COMPRESSION_INFO:
            return False
        if self.photometric in (CMYK, YCBCR, LAB, PALETTE):
            if self.photometric == YCBCR and self.compression != JPEG:
                as_it_is = self.compression == 1  # which Pillow 12 takes for four bytes a pixel
                readable = not as_it_is or (not self.subsampled and PILLOW >= 13)
                return self.bits == 8 and not self.planar and readable
            return self.bits <= 8 or (self.photometric == CMYK and not self.planar)
        if self.photometric == WHITE_IS_ZERO:
            return self.kind == UNSIGNED and self.bits <= 8 and self.samples == 1
        if self.samples == 1:
            in_order = not self.big_endian or self.compression == 1  # of others, Pillow swaps the bytes a second time
            unsigned = self.bits in (1, 2, 4, 8, 16) or (self.bits == 12 and not self.big_endian)
            signed, floats = self.bits in (16, 32) and in_order, self.bits == 32 and in_order
            return {UNSIGNED: unsigned, SIGNED: signed, FLOAT: floats}.get(self.kind, False)
        if self.photometric == RGB:
            usual = self.samples == 3 or self.alpha == 3 or (self.samples == 4 and not self.planar)
            return usual and self.kind == UNSIGNED and (self.bits == 8 or (self.bits == 16 and not self.planar))
        return self.kind == UNSIGNED and self.bits == 8 and self.samples == 2 and self.alpha == 1 and not self.planar

    @property
    def is_plain(self) -> bool:
        """Whether Pillow by itself shows all that there is to it."""
        says_more = self.page != 0 or self.nodata is not None or self.georeferenced
        in_other_shades = self.premultiplied or self.compression == JPEG  # than in parts, by some grey levels
        return self.pillow_is_right and not says_more and not in_other_shades

    @property
    def rasterio_is_right(self) -> bool:
        """Whether GDAL gives the values as they are."""
        return self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE) or (
            self.photometric == YCBCR and self.compression == JPEG
        )


def read_tags(file: BinaryIO, name: str) -> TiffTags | None:
    """The tags of the first page that is no reduced copy; None if they cannot be read.

    Raises:
        UserError: it is a camera's raw picture.
    """
    warnings.filterwarnings("ignore", "Corrupt EXIF data|Truncated File Read|Metadata Warning")  # errors say it
    try:
        first = next(_pages(file))
        pages = (parse(*page) for page in _pages(file))
        tags = next((page for page in pages if not page.reduced), parse(*first))
    except Exception:  # damaged in one of many ways, of which whoever reads the pixels says what is to be said
        return None
    if tags.raw or DNG_VERSION in first[2]:
        raise UserError(f"{name} is a camera's raw picture; develop it to a TIFF, PNG or JPEG first")
    return tags


def parse(number: int, offset: int, tags: TiffImagePlugin.ImageFileDirectory_v2) -> TiffTags:
    """The tags of a page, by their numbers.

    Raises:
        ValueError: they are none.
    """
    if WIDTH not in tags:
        raise ValueError("no picture")
    bits, kinds = _tuple(tags.get(258, 1)), _tuple(tags.get(339, UNSIGNED))
    samples = int(tags.get(277, 1))
    photometric = int(tags.get(262, BLACK_IS_ZERO))
    return TiffTags(
        page=number,
        offset=offset,
        photometric=photometric,
        samples=samples,
        bits=max(bits),
        kind=kinds[0] if len(set(kinds)) == 1 else 0,
        planar=int(tags.get(284, 1)) == 2 and samples > 1,
        compression=int(tags.get(259, 1)),
        extra=_tuple(tags.get(338, ())),
        orientation=int(tags.get(274, 1)),
        nodata=_number(tags.get(42113)),
        georeferenced=any(tag in tags for tag in GEOGRAPHY),
        raw=photometric in RAW_COLORS,
        reduced=bool(int(tags.get(254, 0)) & REDUCED),
        big_endian=tags.prefix == b"MM",
        subsampled=_tuple(tags.get(530, (2, 2))) != (1, 1),
    )


def _pages(file: BinaryIO) -> Iterator[tuple[int, int, TiffImagePlugin.ImageFileDirectory_v2]]:
    """Number, offset and tags of every page, those below others last."""
    file.seek(0)
    header = file.read(8)
    if 43 in header[2:4]:
        header += file.read(8)
    below: list[int] = []
    offset = TiffImagePlugin.ImageFileDirectory_v2(header).next
    for number in range(MOST_PAGES):
        if not offset:
            break
        file.seek(offset)
        page = TiffImagePlugin.ImageFileDirectory_v2(header)
        page.load(file)
        yield number, offset, page
        below += _tuple(page.get(330, ()))
        offset = page.next
    for offset in below:
        file.seek(offset)
        page = TiffImagePlugin.ImageFileDirectory_v2(header)
        page.load(file)
        yield -1, offset, page


def tags_of(image: TiffImagePlugin.TiffImageFile) -> TiffTags:
    """Those of the page that Pillow shows."""
    return parse(image.tell(), 0, image.tag_v2)


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(each) for each in value) if isinstance(value, tuple | list) else (int(value),)


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip().strip("\0"))
    except ValueError:
        return None


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF."""
    return head[:4] in MAGIC
