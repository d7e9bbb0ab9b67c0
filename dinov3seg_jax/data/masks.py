"""Masks: from the values that a file stores to class indices."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from dinov3seg_jax.data.images import open_picture
from dinov3seg_jax.data.transforms import IGNORED
from dinov3seg_jax.errors import UserError, one_line

ANY_BITS = (8, 16)

_UNKNOWN = -2


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
        self._table = np.full(2**16, _UNKNOWN, np.int32)
        self._table[list(ignored_ids)] = IGNORED
        self._table[list(class_of_id.keys())] = list(class_of_id.values())
        self._bits = bits

    def read(self, file: Path | io.BytesIO, name: str) -> Int32[np.ndarray, "h w"]:
        """Class indices, -1 where ignored.

        Raises:
            UserError: The file cannot be read, has another width, or holds a value that is not declared; `name` is what
                the error calls it.
        """
        values, bits = stored_values(file, name)
        if bits not in self._bits:
            raise UserError(
                f"mask {name} has {bits} bits a pixel where {self._bits[0]} are due; make it anew from the original."
            )
        if values.dtype.itemsize > 2:
            declared = (values >= 0) & (values < len(self._table))
            label = np.where(declared, self._table[np.where(declared, values, 0)], _UNKNOWN)
        else:
            label = self._table[values]
        unknown = label == _UNKNOWN
        if unknown.any():
            value = int(values[unknown][0])
            raise UserError(f"mask {name} holds the value {value}, which is no class: declare it, or correct the mask.")
        return label


def stored_values(file: Path | io.BytesIO, name: str) -> tuple[Int[np.ndarray, "h w"], int]:
    """The values of a mask as stored, and their width in bits: 8, or 16 for whatever is wider than that.

    Raises:
        UserError: The file is missing or damaged, has several channels, or fewer than 8 bits a pixel.
    """
    try:
        with open_picture(file, name) as mask:
            mode, stored = mask.mode, str(mask.tile[0].args)
            values = np.asarray(mask)
    except UserError as error:
        raise UserError(f"mask {error}") from error
    except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
        reason = one_line(error)
        raise UserError(f"mask {name} is damaged ({reason}); save or copy it again.") from error
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise UserError(f"mask {name} is a picture of mode {mode}; save it with one channel of 8 or 16 bits.")
    if "L;2" in stored or "L;4" in stored:  # which Pillow scales up to 0 .. 255
        raise UserError(f"mask {name} stores fewer than 8 bits a pixel; save it with 8 or 16 bits.")
    return (values.astype(np.uint8), 8) if mode == "1" else (values, 16 if mode.startswith("I") else 8)
