"""A font that has the letters of a text: Pillow's own for Latin, else one of the extra `fonts` or of this computer."""

import functools
import importlib.util
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

KINDS = (".ttf", ".otf", ".ttc")
# In packages that install fonts: the extra's, and one that many have.
PACKAGED = (("mplfonts", "fonts/NotoSansCJKsc-Regular.otf"), ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"))
# Families with wide coverage come first, upright and of a usual weight.
PREFERRED = ("NotoSans", "NotoSansCJK", "DejaVuSans", "unifont", "ArialUnicode", "PingFang", "msyh", "malgun", "Arial")
OTHER_STYLES = ("Bold", "Italic", "Oblique", "Mono", "Serif", "Light", "Thin", "Black", "Condensed")
MISSING = "\U0010ffff"  # no character, so that every font draws it as it draws what it lacks
PROBE_SIZE = 20
# Latin letters that are no other letter with an accent, as Pillow's own font has none but those of ASCII.
PLAIN = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
    | {"ı": "i"}
)


def drawable(text: str) -> tuple[str, Path | None]:
    """One line of text as it can be drawn, and the file of the font that has its letters; None stands for Pillow's own.

    That font has Latin letters, which lose their accents here. Where no font has all letters, the one that has most of
    them draws boxes for the others.
    """
    line = " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")  # without lone surrogates
    bare = _without_accents(line)
    if bare.isascii() or not _lacking(None, bare):
        return bare, None
    best, least = None, _lacking(None, bare)
    for file in _files():
        lacking = _lacking(file, line)
        if lacking < least:
            best, least = file, lacking
        if not lacking:
            break
    return (bare, None) if best is None else (line, best)


def boxed(names: Iterable[str]) -> list[str]:
    """The names of which no font here has all letters."""
    pairs = ((name, *drawable(name)) for name in names)
    return [name for name, line, file in pairs if not line.isascii() and _lacking(file, line)]


def load(file: Path | None, size: int) -> Font:
    """The font of a file at a size in pixels."""
    return ImageFont.load_default(size=size) if file is None else _open(file, size)


def _without_accents(line: str) -> str:
    apart = unicodedata.normalize("NFKD", line.translate(PLAIN))
    bare = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return unicodedata.normalize("NFC", bare)  # Korean syllables come apart, too


@functools.lru_cache(maxsize=16)
def _open(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


def _lacking(file: Path | None, text: str) -> int:
    """How many letters of a text a font lacks; all where it cannot be read."""
    letters = {letter for letter in text if not letter.isspace() and not unicodedata.combining(letter)}
    return sum(not _has(file, letter) for letter in letters)


@functools.lru_cache(maxsize=65_536)
def _has(file: Path | None, letter: str) -> bool:
    try:
        font = load(file, PROBE_SIZE)
        return _drawn(font, letter) != _drawn(font, MISSING)
    except (OSError, ValueError):  # no font, or of a kind that cannot be drawn
        return False


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.cache
def _files() -> tuple[Path, ...]:
    """Files of fonts, the best first."""
    packaged = [path for package, name in PACKAGED if (path := _in_package(package, name)) is not None]
    installed = {path for folder in _folders() if folder.is_dir() for path in folder.rglob("*")}
    fonts = sorted(path for path in installed if path.suffix.lower() in KINDS)
    return (*packaged, *sorted(fonts, key=_rank))


def _rank(path: Path) -> tuple[bool, int]:
    name = path.stem.replace(" ", "").replace("-Regular", "")
    styled = any(style.lower() in name.lower() for style in OTHER_STYLES)
    place = next((place for place, family in enumerate(PREFERRED) if name.lower() == family.lower()), len(PREFERRED))
    return styled, place


def _in_package(package: str, name: str) -> Path | None:
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / name if found is not None and found.origin else None
    return path if path is not None and path.is_file() else None


def _folders() -> Iterator[Path]:
    """Where systems keep fonts."""
    if sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), Path.home() / "Library/Fonts")
    elif sys.platform == "win32":
        yield Path("C:/Windows/Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
        yield from (Path.home() / ".local/share/fonts", Path.home() / ".fonts")
