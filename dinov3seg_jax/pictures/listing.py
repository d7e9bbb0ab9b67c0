"""The pictures that a command line names: files, folders, patterns, standard input; and what else lies there."""

import contextlib
import glob
import importlib.util
import os
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from dinov3seg_jax.data import clips
from dinov3seg_jax.data.images import FORMATS, SUFFIXES
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.folders import files_below
from dinov3seg_jax.pictures.finished import is_result
from dinov3seg_jax.places import is_remote

STANDARD_INPUT = Path("-")
HEIF = FORMATS["HEIF"]
TIFF_STARTS = (b"II*\0", b"MM\0*")
LINK, BARE, RESULT = "link to a folder", "without an ending", "result of this program"


class Listing(NamedTuple):
    """Pictures, and what lay beside them."""

    roots: dict[Path, Path]  # each picture, and the folder below which it has its place
    passed_over: Counter[str]  # by their ending, or by one of the words above
    single: bool  # one picture was named, by itself


def find_pictures(named: Sequence[Path]) -> Listing:
    """The pictures that paths name, each once.

    Args:
        named: Files, taken as they are; folders, searched with their subfolders for files whose ending is one of
            `SUFFIXES` in any case; and patterns like "photos/*.jpg", which a shell may have left alone. In folders,
            hidden files and folders (".name") are skipped, and links to folders, and overlays and label maps that this
            program wrote. A link that leads nowhere is listed, so that whoever reads it hears of it.

    Returns:
        At least one picture; those of a folder are sorted by their path below it.

    Raises:
        UserError: A path does not exist or is neither file nor folder, a folder cannot be read, or one holds no
            picture.
    """
    roots: dict[Path, Path] = {}
    passed_over: Counter[str] = Counter()
    seen = set()
    for root, path in (pair for given in named for pair in _expand(given, passed_over)):
        if (key := path.absolute()) not in seen:
            seen.add(key)
            roots[path] = root
    single = len(named) == 1 and len(roots) == 1 and next(iter(roots)) == named[0]
    return Listing(roots, passed_over, single)


def named_files(path: Path) -> Iterator[tuple[Path, Path]]:
    """Root and path of each file that a path names, whatever it holds; arguments and errors as for `find_pictures`."""
    if _is_pattern(path):
        root = _before_magic(path)
        for match in _matches(path, root):
            yield from ((root, file) for file in (_files_below(match, Counter()) if match.is_dir() else [match]))
    elif _is_folder(path):
        yield from ((path, file) for file in _files_below(path, Counter()))
    else:
        yield path.parent, path


def describe_passed_over(passed_over: Counter[str]) -> str:
    """One line about files that were not taken for pictures; empty if there were none."""
    if not passed_over:
        return ""
    several = {LINK: "links to folders", RESULT: "results of this program"}
    parts = [f"{count} {several.get(kind, kind) if count > 1 else kind}" for kind, count in passed_over.most_common()]
    total = passed_over.total()
    line = f"{total} {'file' if total == 1 else 'files'} passed over: {', '.join(parts)}"
    if any(kind in HEIF for kind in passed_over):
        line += "; to read .heic, install the extra 'heif'"
    if not clips.has_reader() and (videos := sorted(clips.SUFFIXES & passed_over.keys())):
        line += f"; to read {videos[0]}, install the extra 'video'"
    return line


@contextlib.contextmanager
def standard_input(named: Sequence[Path]) -> Iterator[list[Path]]:
    """The paths, with a file in the place of "-" that holds what is piped into this process.

    Raises:
        UserError: Nothing is.
    """
    if STANDARD_INPUT not in named:
        yield list(named)
        return
    content = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    if not content:
        raise UserError("--image is -, but nothing comes from standard input; pipe a picture into the command")
    with tempfile.TemporaryDirectory(prefix="dinov3seg-") as folder:
        file = Path(folder, "stdin.tif" if content.startswith(TIFF_STARTS) else "stdin")
        file.write_bytes(content)
        yield [file if path == STANDARD_INPUT else path for path in named]


def readable_suffixes() -> frozenset[str]:
    """The endings of pictures and videos that can be read with what is installed."""
    pictures = SUFFIXES if importlib.util.find_spec("pillow_heif") else SUFFIXES.difference(HEIF)
    return pictures | clips.SUFFIXES if clips.has_reader() else pictures


def _expand(path: Path, passed_over: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """Root and path of each picture that is meant."""
    if _is_pattern(path):
        root = _before_magic(path)
        found = [picture for match in _matches(path, root) for _, picture in _expand_match(match, passed_over)]
        if not found:
            raise UserError(f"no picture matches {path}; use files that end in {', '.join(sorted(SUFFIXES))}")
        yield from ((root, picture) for picture in found)
        return
    if _is_folder(path):
        yield from _of_folder(path, passed_over)
    else:
        yield path.parent, path


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder, and no file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); check the path and its permissions") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited for
        raise UserError(f"{path} is neither a file nor a folder; give a picture, or a folder of pictures")
    return stat.S_ISDIR(mode)


def _expand_match(path: Path, passed_over: Counter[str]) -> Iterable[tuple[Path, Path]]:
    if path.is_dir():
        return _walk(path, passed_over)
    kept = _keep([path], passed_over)
    return [(path.parent, path) for path in kept]


def _is_pattern(path: Path) -> bool:
    return glob.has_magic(str(path)) and not (path.exists() if is_remote(path) else os.path.lexists(path))


def _matches(pattern: Path, root: Path) -> list[Path]:
    if is_remote(pattern):
        found = list(root.glob(pattern.relative_to(root).as_posix()))
    else:
        found = list(map(Path, glob.glob(str(pattern), recursive=True)))
    if not found:
        raise UserError(f"no file matches {pattern}; check the pattern")
    return sorted(found)


def _before_magic(pattern: Path) -> Path:
    """The folder that holds all that a pattern can mean."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _of_folder(folder: Path, passed_over: Counter[str]) -> list[tuple[Path, Path]]:
    found = list(_walk(folder, passed_over))
    if not found:
        beside = f"; {describe_passed_over(passed_over)}" if passed_over else ""
        raise UserError(
            f"the folder {folder} holds no picture{beside}; use files that end in {', '.join(sorted(SUFFIXES))}"
        )
    return found


def _walk(top: Path, passed_over: Counter[str]) -> Iterator[tuple[Path, Path]]:
    below = _keep(_files_below(top, passed_over), passed_over)
    if not is_remote(top):  # which is sorted
        below.sort(key=lambda file: file.relative_to(top).as_posix())
    return ((top, file) for file in below)


def _files_below(top: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """The files of a folder and its subfolders that are not hidden, in any order; links to folders are counted."""
    if is_remote(top):
        listed = files_below(top).items()
        yield from (file for name, file in listed if not any(part.startswith(".") for part in name.split("/")))
        return
    for folder, subfolders, names in os.walk(top, onerror=_refuse_folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if links := sum(Path(folder, name).is_symlink() for name in subfolders):
            passed_over[LINK] += links
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _keep(files: Iterable[Path], passed_over: Counter[str]) -> list[Path]:
    """The pictures among files."""
    suffixes, kept = readable_suffixes(), []
    for file in files:
        if file.suffix.lower() not in suffixes:
            passed_over[file.suffix.lower() or BARE] += 1
        elif is_result(file):
            passed_over[RESULT] += 1
        elif is_remote(file) or _is_file_or_lost(file):
            kept.append(file)
    return kept


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"the folder {error.filename} cannot be read ({reason(error)}); check its permissions") from error


def _is_file_or_lost(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link that leads nowhere, in a circle, or where nobody may look
        return True
