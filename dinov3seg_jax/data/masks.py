"""Masks: from the values that a file stores to class indices."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dinov3seg_jax.data.images import open_picture
from dinov3seg_jax.data.orientation import orientation, turn
from dinov3seg_jax.data.tiff_tags import tags_of
from dinov3seg_jax.data.transforms import IGNORED
from dinov3seg_jax.errors import UserError, one_line

ANY_BITS = (8, 16)
LOSSY = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})  # as files, and as compressions of a TIFF

UNLABELLED = 0  # the value that `IndexReader` knows as none

_UNKNOWN = -2


class Mask(NamedTuple):
    """A mask as its file holds it."""

    name: str  # what errors call it
    values: Int[np.ndarray, "h w"]  # as stored, but turned by the mask's own note
    bits: int  # of a value: 8, or 16 for whatever is wider than that
    own: int  # that note, 1 to 8; see `data.orientation`
    palette: tuple[int, ...] = ()  # red, green and blue of each value, where they are indices

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[0], self.values.shape[1]


class MaskReader:
    """Reads masks of one channel, or with a palette, of which the indices count."""

    def __init__(
        self, class_of_id: Mapping[int, int], ignored_ids: Iterable[int] = (), bits: tuple[int, ...] = ANY_BITS
    ) -> None:
        """Say what values mean.

        Args:
            class_of_id: from the values in the masks, 0 .. 65535, to class indices.
            ignored_ids: values that stand for "no label"; what `class_of_id` lists is not ignored.
            bits: how wide a stored value may be: 8, 16, or either. Masks that were cut down to 8 bits are refused where
                16 are due, since 256 and 0 look the same in them.
        """
        self.class_of_id = dict(class_of_id)
        self._table = np.full(2**16, _UNKNOWN, np.int32)
        self._table[list(ignored_ids)] = IGNORED
        self._table[list(class_of_id.keys())] = list(class_of_id.values())
        self._bits = bits

    def open(self, file: Path | io.BytesIO, name: str) -> Mask:
        """Read a file, whatever its values mean.

        Raises:
            UserError: It cannot be read, or has another width; `name` is what the error calls it.
        """
        mask = stored_mask(file, name)
        if mask.bits not in self._bits:
            raise UserError(
                f"mask {name} has {mask.bits} bits a pixel where {self._bits[0]} are due; make it anew from the "
                "original."
            )
        return mask

    def label(self, mask: Mask) -> Int32[np.ndarray, "h w"]:
        """Class indices, -1 where ignored.

        Raises:
            UserError: The mask holds a value that is not declared.
        """
        label = self.meaning(mask.values)
        unknown = label == _UNKNOWN
        if unknown.any():
            value = int(mask.values[unknown][0])
            raise UserError(
                f"mask {mask.name} holds the value {value}, which is no class: declare it, or correct the mask."
            )
        return label

    def is_declared(self, value: int) -> bool:
        """Whether a value is that of a class, or ignored."""
        return bool(self.meaning(np.array(value)) != _UNKNOWN)

    def meaning(self, values: Int[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
        """Class indices, -1 where ignored, and less for values that are not declared."""
        if values.dtype.itemsize <= 2:
            return self._table[values]
        declared = (values >= 0) & (values < len(self._table))
        return np.where(declared, self._table[np.where(declared, values, 0)], _UNKNOWN)


class IndexReader(MaskReader):
    """Of masks that are drawn here: the values are class indices plus one, and `UNLABELLED`."""

    def __init__(self, class_count: int) -> None:
        """Of so many classes."""
        super().__init__({index + 1: index for index in range(class_count)}, (UNLABELLED,))


def stored_mask(file: Path | io.BytesIO, name: str) -> Mask:
    """A mask of one channel, or with a palette.

    Raises:
        UserError: The file is missing or damaged, has several channels or pages, fewer than 8 bits a pixel, or was
            stored in a way that changes values.
    """
    try:
        with open_picture(file, name) as mask:
            refuse_what_changes_values(mask, name)
            own = orientation(mask)
            values = np.asarray(mask)
            _refuse_channels(mask, name)
            if mask.format != "TIFF":  # which Pillow has turned
                values = turn(values, own)
            palette = tuple(mask.getpalette() or ()) if mask.mode == "P" else ()
    except UserError as error:
        raise UserError(f"mask {error}") from error
    except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
        reason = one_line(error)
        raise UserError(f"mask {name} is damaged ({reason}); save or copy it again.") from error
    if mask.mode == "1":
        values = values.astype(np.uint8)
    return Mask(name, values, 16 if mask.mode.startswith("I") else 8, own, palette)


def refuse_what_changes_values(mask: ImageFile, name: str) -> None:
    compression = str(mask.info.get("compression", "")).upper().removeprefix("TIFF_")
    if mask.format in LOSSY or compression in LOSSY:
        raise UserError(f"{name} is compressed as {compression or mask.format}, which changes values; save it as PNG.")
    stored = str(mask.tile[0].args)
    if "L;2" in stored or "L;4" in stored:  # which Pillow scales up to 0 .. 255
        raise UserError(f"{name} stores fewer than 8 bits a pixel; save it with 8 or 16 bits.")
    if "L;I" in stored:  # which Pillow turns round, to 255 .. 0
        raise UserError(f"{name} is a TIFF in which 0 is white; save it as PNG, or with 0 as black.")
    if _pages(mask) > 1:
        raise UserError(f"{name} holds several pages; save a single one, with the id of its class at each pixel.")


def _pages(mask: ImageFile) -> int:
    """Pages beside each other; those of a TIFF that repeat another one, made small, do not count."""
    count = getattr(mask, "n_frames", 1)
    if count == 1 or not isinstance(mask, TiffImageFile):
        return count
    shown, full = mask.tell(), 0
    for page in range(count):
        mask.seek(page)
        full += not tags_of(mask).reduced
    mask.seek(shown)
    return full


def _refuse_channels(mask: Image.Image, name: str) -> None:
    if mask.mode in ("1", "L", "P") or mask.mode.startswith("I"):
        return
    what, due = f"{name} is a picture of mode {mask.mode}", "save it with one channel of 8 or 16 bits"
    if mask.mode == "F":
        raise UserError(f"{what}, which holds fractions; {due}, as whole numbers.")
    if mask.mode in ("LA", "PA"):
        raise UserError(f"{what}, which holds transparency too; {due}, without it.")
    bands = np.asarray(mask)
    if mask.mode in ("RGB", "RGBA") and (bands[..., :3] == bands[..., :1]).all():
        raise UserError(f"{what}, though all of it is grey; {due}, as any of its three colours.")
    raise UserError(f"{what}, whose colours are no class ids; {due}, with the id of its class at each pixel.")
