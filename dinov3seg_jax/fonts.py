"""Fonts that together have the letters of a text: Pillow's own, those of the extra `fonts`, those of this computer.

Pillow draws a text with one font, and boxes for what that lacks. So a text is split where the font changes.
"""

import functools
import importlib.util
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont, features

from dinov3seg_jax.reading_order import parts_from_left

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

KINDS = (".ttf", ".otf", ".ttc")
# Packages, and their folders with fonts: the extra's, and one that many have.
PACKAGED = (("manimgx_fonts", ""), ("noto_cjk_sans_otc", ""), ("matplotlib", "mpl-data/fonts/ttf"))
# Families with wide coverage come first, upright and of a usual weight.
PREFERRED = ("NotoSans", "NotoSansCJK", "DejaVuSans", "unifont", "ArialUnicode", "PingFang", "msyh", "malgun", "Arial")
OTHER_STYLES = ("Bold", "Italic", "Oblique", "Mono", "Serif", "Light", "Thin", "Black", "Condensed", "Display")
FONT_IN_FILE = {"NotoSansCJK-Regular.ttc": 2}  # the one for simplified Chinese; the letters are the same in all
MISSING = "\U0010ffff"  # no character, so that every font draws it as it draws what it lacks
PROBE_SIZE = 20
SHAPES = features.check("raqm")  # whether Pillow here joins Arabic letters and orders Indic ones
JOINERS = "\u200c\u200d" if SHAPES else ""  # which say that letters are to be joined, or not
# Latin letters that are no other letter with an accent, as Pillow's own font has none but those of ASCII.
PLAIN = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
    | {"ı": "i"}
)


class Run(NamedTuple):
    """A part of a line that one font draws."""

    text: str  # in the order in which it is read
    file: Path | None  # the font's; None is Pillow's own
    leftwards: bool = False  # whether it is read from right to left


def runs(text: str) -> list[Run]:
    """One line of text, as the parts that stand from left to right.

    Each takes the font that has the most letters in a row, from its first one. A Latin letter whose accent no font has
    loses it; any other letter that no font has becomes a box.
    """
    return [run for part, leftwards in parts_from_left(as_line(text)) for run in _split(part, leftwards)]


def boxed(names: Iterable[str]) -> list[str]:
    """The names of which no font here has all letters."""
    return [name for name in names if any(not _somewhere(_drawable(part)) for part in clusters(as_line(name)))]


def as_line(text: str) -> str:
    """A text without ends of lines, lone surrogates and letters that nobody sees, each accent one with its letter."""
    seen = unicodedata.normalize("NFC", " ".join(text.split())).encode("utf-8", "replace").decode("utf-8")
    return "".join(letter for letter in seen if letter in JOINERS or not _unseen(letter))


def clusters(line: str) -> list[str]:
    """Letters, each with the marks that belong to it: a text is cut between them, and never within."""
    parts: list[str] = []
    for letter in line:
        joined = parts and (letter in JOINERS or parts[-1][-1] in JOINERS or _is_mark(letter))
        if joined:
            parts[-1] += letter
        else:
            parts.append(letter)
    return parts


def load(file: Path | None, size: int) -> Font:
    """The font of a file at a size in pixels."""
    return ImageFont.load_default(size=size) if file is None else _open(file, size)


def _split(part: str, leftwards: bool) -> list[Run]:
    left = [_drawable(cluster) for cluster in clusters(part)]
    found: list[Run] = []
    while left:
        file, count = (None, 1) if left[0] == " " else _longest(left)
        while file is not None and count > 1 and left[count - 1] == " ":  # some fonts, as of emoji, have wide blanks
            count -= 1
        text, left = "".join(left[: max(count, 1)]), left[max(count, 1) :]
        if found and (not count or file == found[-1].file):  # without a letter, it is a box in any font
            text, file = found[-1].text + text, found.pop().file
        found.append(Run(text, file, leftwards))
    return found[::-1] if leftwards else found


def _longest(parts: Sequence[str]) -> tuple[Path | None, int]:
    """The font that has the most of these letters in a row, and how many; the best of several."""
    best: tuple[Path | None, int] = None, 0
    for file in _candidates():
        count = next((place for place, part in enumerate(parts) if not _has(file, part)), len(parts))
        if count > best[1]:
            best = file, count
        if count == len(parts):
            break
    return best


def _drawable(cluster: str) -> str:
    """A letter, without its accent if only so a font has it."""
    bare = _without_accents(cluster)
    return bare if bare.isascii() and not _somewhere(cluster) else cluster


def _without_accents(letter: str) -> str:
    apart = unicodedata.normalize("NFKD", letter.translate(PLAIN))
    return "".join(part for part in apart if not unicodedata.combining(part))


@functools.lru_cache(maxsize=65_536)
def _somewhere(cluster: str) -> bool:
    return any(_has(file, cluster) for file in _candidates())


def _candidates() -> tuple[Path | None, ...]:
    return (None, *_files())


@functools.lru_cache(maxsize=65_536)
def _has(file: Path | None, cluster: str) -> bool:
    letters = [letter for letter in cluster if letter not in JOINERS and not letter.isspace()]
    try:
        font = load(file, PROBE_SIZE)
        return all(_drawn(font, letter) != _drawn(font, MISSING) for letter in letters)
    except (OSError, ValueError):  # no font, or of a kind that cannot be drawn
        return False


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _is_mark(letter: str) -> bool:
    skin_tone = "\U0001f3fb" <= letter <= "\U0001f3ff"
    return skin_tone or unicodedata.category(letter).startswith("M")


def _unseen(letter: str) -> bool:
    variation = "\ufe00" <= letter <= "\ufe0f"  # as for emoji in colours, which no font here has
    return variation or unicodedata.category(letter) in ("Cf", "Cc")


@functools.lru_cache(maxsize=64)
def _open(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size, index=FONT_IN_FILE.get(file.name, 0))


@functools.cache
def _files() -> tuple[Path, ...]:
    """Files of fonts, the best first."""
    packaged = [[folder] for package, name in PACKAGED if (folder := _in_package(package, name)) is not None]
    return tuple(file for folders in (*packaged, _folders()) for file in sorted(_fonts_in(folders), key=_rank))


def _fonts_in(folders: Iterable[Path]) -> list[Path]:
    files = {path for folder in folders if folder.is_dir() for path in folder.rglob("*")}
    return sorted(path for path in files if path.suffix.lower() in KINDS)


def _rank(path: Path) -> tuple[bool, int]:
    name = path.stem.split("[")[0].replace(" ", "").replace("-Regular", "")  # without the axes, as in "Noto[wght]"
    styled = any(style.lower() in name.lower() for style in OTHER_STYLES)
    place = next((place for place, family in enumerate(PREFERRED) if name.lower() == family.lower()), len(PREFERRED))
    return styled, place


def _in_package(package: str, folder: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent / folder if found is not None and found.origin else None


def _folders() -> Iterator[Path]:
    """Where systems keep fonts."""
    if sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), Path.home() / "Library/Fonts")
    elif sys.platform == "win32":
        yield Path("C:/Windows/Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
        yield from (Path.home() / ".local/share/fonts", Path.home() / ".fonts")
