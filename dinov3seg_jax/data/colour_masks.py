"""Masks in colours, and the table that says which class a colour is."""

from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from dinov3seg_jax.data.folder import ImageFolder
from dinov3seg_jax.data.images import open_picture
from dinov3seg_jax.data.masks import UNLABELLED, IndexReader, Mask, refuse_what_changes_values
from dinov3seg_jax.data.orientation import orientation, turn
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.text.class_lists.colors import Color, read_color
from dinov3seg_jax.text.class_lists.given import parse_classes
from dinov3seg_jax.text.class_lists.named import NamedClass

ENDS = ("csv", "json", "yaml")
TABLES = (
    "labelmap.txt",
    "palette.csv",
    "palette.json",
    "palette.yaml",
    "classes.csv",
    "classes.json",
    "class_dict.csv",
)
SMOOTHED = 20  # colours in no row: more are no forgotten rows

Unlisted = Literal["refuse", "ignore"]


class ColourTable(NamedTuple):
    """Classes and their colours."""

    path: Path
    names: tuple[str, ...]
    colours: tuple[Color, ...]


def find_table(root: Path) -> Path:
    """The table of a folder: the first of `TABLES` that there is.

    Raises:
        UserError: there is none.
    """
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root} has no table of colours; write {root / 'palette.csv'} with the columns name, r, g, b.")


def read_table(path: Path) -> ColourTable:
    """Read a table: CVAT's labelmap.txt, or a class list with colours (docs/class_lists.md) as CSV, JSON or YAML.

    Raises:
        UserError: it cannot be read, a class has no colour, or two have the same name or colour.
    """
    classes = _labelmap(path) if path.name == "labelmap.txt" else [*map(NamedClass.of, parse_classes(f"@{path}"))]
    if plain := next((one for one in classes if one.color is None), None):
        raise UserError(f"{path} gives '{plain.names[0]}' no colour; add it, as in the columns name, r, g, b.")
    colours = tuple(one.color for one in classes if one.color is not None)
    names = tuple(one.names[0] for one in classes)
    for what, values in (("name", names), ("colour", [*map(_hex, colours)])):
        value, uses = Counter(values).most_common(1)[0]
        if uses > 1:
            raise UserError(f"{path} lists the {what} {value} {uses} times; keep one.")
    return ColourTable(path, names, colours)


def _labelmap(path: Path) -> list[NamedClass]:
    """CVAT's and Pascal VOC's "name:r,g,b:parts:actions"."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); export it anew.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        if not name.strip() or not rest:
            raise UserError(f"line {number} of {path} is not of the form name:r,g,b:parts:actions; correct it.")
        colour = read_color(rest.partition(":")[0], f"the colour of '{name.strip()}' in {path}")
        found.append(NamedClass((name.strip(),), color=colour))
    if not found:
        raise UserError(f"{path} lists no classes; export it anew.")
    return found


class ColourFolder(ImageFolder):
    """A random-access source of images with masks in colours, in the order of their names."""

    def __init__(
        self, images: Path, masks: Path, table: ColourTable, unlisted: Unlisted, shared_images: bool = False
    ) -> None:
        """List both folders; no file is opened yet.

        Args:
            images, masks, shared_images: as for `ImageFolder`.
            table, unlisted: as for `ColourReader`.

        Raises:
            UserError: as for `ImageFolder`.
        """
        super().__init__(images, masks, {}, shared_images=shared_images)
        self.reader = ColourReader(table, unlisted)


class ColourReader(IndexReader):
    """Reads masks whose colours are the classes of a table; the values of its masks are class indices plus one."""

    def __init__(self, table: ColourTable, unlisted: Unlisted = "refuse") -> None:
        """Say what colours mean.

        Args:
            table: of all colours.
            unlisted: what becomes of others: an error, or pixels that are ignored.
        """
        super().__init__(len(table.colours))
        codes = _codes(np.array(table.colours, np.uint8))
        self._where, self._unlisted, self._order = table.path, unlisted, np.argsort(codes)
        self._codes = codes[self._order]

    def open(self, file: Path, name: str) -> Mask:  # type: ignore[override]  # only files hold masks in colours
        """Read a file.

        Raises:
            UserError: it cannot be read, or holds a colour that is in no row.
        """
        colours, own = stored_colours(file, name)
        codes = _codes(colours)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        listed = self._codes[places] == codes
        if self._unlisted == "refuse" and not listed.all():
            self._refuse(codes[~listed], name)
        return Mask(name, np.where(listed, self._order[places] + 1, UNLABELLED).astype(np.uint16), 16, own)

    def _refuse(self, codes: Int32[np.ndarray, " n"], name: str) -> None:
        others, pixels = np.unique(codes, return_counts=True)
        most = int(pixels.argmax())
        more = f" and {len(others) - 1} other colours" if len(others) > 1 else ""
        mend = "add a row, or ignore such pixels with data.train.unlisted=ignore"
        if len(others) > SMOOTHED:
            mend = "so many are smoothed edges: export the masks anew without smoothing, at the size of the pictures"
        raise UserError(
            f"mask {name} holds the colour #{others[most]:06x} on {pixels[most]:,} pixels{more}, which {self._where} "
            f"does not list; {mend}."
        )


def stored_colours(path: Path, name: str) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The colours of a mask, and the turn that it notes: of RGB, grey, or with a palette.

    Raises:
        UserError: it cannot be read, is transparent somewhere, or was stored in a way that changes colours.
    """
    try:
        with open_picture(path, name) as mask:
            refuse_what_changes_values(mask, name)
            own = orientation(mask)
            pixels = np.asarray(mask.convert("RGBA"))
            if mask.mode.startswith(("I", "F")):
                raise UserError(f"{name} is a picture of mode {mask.mode}, which holds no colours; save it as RGB.")
            if mask.format != "TIFF":  # which Pillow has turned
                pixels = turn(pixels, own)
    except UserError as error:
        raise UserError(f"mask {error}") from error
    except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
        raise UserError(f"mask {name} is damaged ({one_line(error)}); save or copy it again.") from error
    if (pixels[..., 3] < 255).any():
        raise UserError(f"mask {name} is transparent in places; save it as RGB, in the colour of no class there.")
    return pixels[..., :3], own


def _codes(colours: UInt8[np.ndarray, "*n 3"]) -> Int32[np.ndarray, "*n"]:
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _hex(colour: Color) -> str:
    return f"#{bytes(colour).hex()}"
