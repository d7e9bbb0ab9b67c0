"""Writing a labelled picture in the formats that are asked for, and the files of a folder from what its pictures left.

Every file appears whole or not at all.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dinov3seg_jax.files import appearing, write_whole
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.parts import Classes, Lines, PartFiles
from dinov3seg_jax.formats.table import FORMATS

CLASSES_FILE = ".classes.json"  # of a folder; hidden, so that no picture's results can have its name


def write_formats(answer: Answer, outputs: Outputs, folder: Path, stem: str) -> list[Path]:
    """Write what the formats' own writers can; see `table.Format.write`.

    Args:
        answer: a labelled picture.
        outputs: what is asked for. With a folder, what the picture adds to that folder's files waits in hidden files
            for `join_folder`; else it makes files of its own, with the stem before their names.
        folder: that exists.
        stem: the beginning of the files' names.

    Returns:
        The files that a user sees, in the order of their formats.

    Raises:
        OSError: a file cannot be written.
        UserError: a format cannot hold this picture, or a library is missing.
    """
    written = []
    for name in outputs.formats:
        row = FORMATS[name]
        if row.write is not None:
            path = folder / f"{stem}{row.suffix(answer)}"
            with appearing(path) as temporary:
                row.write(answer, outputs, temporary)
            written.append(path)
        if outputs.folder is None:
            part = [list(row.part(answer, outputs))] if row.part else []
            written += _join(name, folder, f"{stem}_", part, Classes(answer.names, answer.colors))
        elif row.joined:
            if row.part is not None:
                _write_lines(part_path(folder, stem, name), row.part(answer, outputs))
            if not (outputs.folder / CLASSES_FILE).exists():
                write_whole(outputs.folder / CLASSES_FILE, Classes(answer.names, answer.colors).to_bytes())
    return written


def join_folder(outputs: Outputs, places: Sequence[Path]) -> list[Path]:
    """Write the files of a folder from what its pictures left there.

    Args:
        outputs: with a folder.
        places: the folder and stem of each picture that is done, in the order that they have in the files.

    Returns:
        The files.

    Raises:
        OSError: one of them cannot be written.
    """
    assert outputs.folder is not None
    written: list[Path] = []
    joined = [name for name in outputs.formats if FORMATS[name].joined]
    if joined and places:
        classes = Classes.read(outputs.folder / CLASSES_FILE)
        for name in joined:
            parts = PartFiles([part_path(place.parent, place.name, name) for place in places])
            written += _join(name, outputs.folder, "", parts if FORMATS[name].part else [], classes)
    return written


def part_path(folder: Path, stem: str, name: str) -> Path:
    """Where a picture's part of a folder's files waits; hidden."""
    return folder / f".{stem}.{name}"


def _join(name: str, folder: Path, before: str, parts: Iterable[Lines], classes: Classes) -> Iterator[Path]:
    for file, join in FORMATS[name].joined.items():
        path = folder / f"{before}{file}"
        with appearing(path) as temporary, temporary.open("wb") as opened:
            opened.writelines(join(parts, classes))
        yield path


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with appearing(path) as temporary, temporary.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")
