"""Which pictures of a folder are done: a run that was stopped goes on where it was, and never mixes two questions."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import sweep, write_whole
from dinov3seg_jax.folders import files_below
from dinov3seg_jax.formats.outputs import DEFAULT, Outputs
from dinov3seg_jax.formats.table import FORMATS, is_summary
from dinov3seg_jax.formats.writing import CLASSES_FILE, join_folder, part_path
from dinov3seg_jax.pictures.places import written_to
from dinov3seg_jax.places import is_remote
from dinov3seg_jax.visualize import Drawing

RUN_FILE = ".predictions.json"  # hidden, so that no picture's results can have its name
RECORD = "files"  # in it, by the names of their results: the pictures that were asked about, as they were then
ASKED = "formats"  # in it: the formats of these results
DRAWN = "drawing"  # in it: what their overlays look like, which is no part of the question
SUMMARY = ".json"  # of a picture; written last
PICTURES = ("_overlay.png", "_labels.png", "_labels.tif", "_scores.tif")  # that are results
OF_CLIPS = ("_overlay.mp4", "_labels")  # of a video: its overlay, and the folder of its frames' labels
NAME_BYTES = 255  # that a file's name can have

ALONE = Outputs()  # the usual files of each picture, none of the whole folder
Question = dict[str, Any]  # what results depend on, by the words that a user knows it by
Listed = frozenset[str] | None  # the files of a folder in a bucket; None: on this machine, where each is asked for


class Picture(NamedTuple):
    """What is segmented, and where its results go."""

    path: Path
    target: Path  # folder and stem of their names
    file: str = ""  # what it is called in files about several; the path's name unless given

    @property
    def summary(self) -> Path:
        """The file that is there when the picture is done."""
        return self._named(SUMMARY)

    @property
    def title(self) -> str:
        """What it is called in files about several."""
        return self.file or self.path.name

    def results(self, formats: Iterable[str] = FORMATS) -> Iterable[Path]:
        """All files that these formats can write of it."""
        return (path for name in formats for choices in self._files(name) for path in choices)

    def shown(self, formats: Iterable[str]) -> Path | None:
        """The first of the files of its own that are there."""
        ends = (end for name in formats for end in FORMATS[name].suffixes)
        return next((path for path in map(self._named, ends) if path.exists()), None)

    def state(self) -> str:
        """What tells it from another picture, and from itself before an edit; empty if it is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return ""
        return f"{self.path.name}, {found.st_size} bytes, {found.st_mtime_ns} ns"

    def is_done(self, recorded: str, formats: Iterable[str] = DEFAULT, listed: Listed = None) -> bool:
        """Whether the results in all formats are there, and the picture's state is the recorded one."""
        try:
            return recorded == self.state() != "" and all(
                any(path.exists() if listed is None else str(path) in listed for path in choices)
                for name in formats
                for choices in self._files(name)
            )
        except OSError:
            return False

    def summary_is_ours(self, listed: Listed = None) -> bool | None:
        """Whether it holds what this program writes; None if there is none."""
        try:
            return is_summary(self.summary) if _may_be_there(self.summary, listed) else None
        except OSError:
            return None

    def foreign(self, formats: Iterable[str], listed: Listed = None) -> Path | None:
        """A file in the place of a result that this program did not write, as far as that can be told."""
        for name in formats:
            if (is_ours := FORMATS[name].is_ours) is not None:
                for path in (path for path in self.results([name]) if _may_be_there(path, listed)):
                    with contextlib.suppress(OSError):
                        if not is_ours(path):
                            return path
        return None

    def has_long_name(self, formats: Iterable[str] = DEFAULT) -> bool:
        """Whether a result's name, also the temporary one (see `files.appearing`), is too long for a file."""
        names = (path.name for path in self.results(formats))
        return any(len(os.fsencode(f".{name}.{os.getpid()}")) > NAME_BYTES for name in names)

    def _files(self, name: str) -> Iterator[Sequence[Path]]:
        """Of a format, the files that a picture has, each with the names that it may have."""
        row = FORMATS[name]
        if row.suffixes:
            yield [self._named(end) for end in row.suffixes]
        if row.part is not None:
            yield [part_path(self.target.parent, self.target.name, name)]

    def _named(self, end: str) -> Path:
        return self.target.with_name(self.target.name + end)


def is_result(path: Path) -> bool:
    """Whether a file is an overlay or a label map that this program wrote beside its summary."""

    def is_beside_ours(path: Path) -> bool:
        stem = next((path.name.removesuffix(end) for end in PICTURES + OF_CLIPS if path.name.endswith(end)), "")
        return bool(stem) and Picture(path, path.with_name(stem)).summary_is_ours() is True

    return is_beside_ours(path) or is_beside_ours(path.parent)


def to_do(
    out: Path, question: Question, pictures: Sequence[Picture], overwrite: bool, outputs: Outputs = ALONE
) -> list[Picture]:
    """The pictures without results; nothing is written.

    Args:
        out: folder of the results.
        question: that they answer; plain values.
        pictures: of the run.
        overwrite: do all of them, whatever is there.
        outputs: what is written of each.

    Raises:
        UserError: the folder holds the answers to another question, or a file that is nobody's answer in a place of
            theirs.
    """
    if overwrite:
        return list(pictures)
    earlier, listed = _read(out), _listed(out)
    if earlier is not None and (differing := _differing(question, earlier)):
        raise UserError(
            f"{out} holds results of other {' and '.join(differing)}; choose another --out, or add --overwrite to "
            "replace them"
        )
    lost = bool(_joined(out, outputs.formats)) and outputs.folder is not None and not (out / CLASSES_FILE).exists()
    recorded = {} if lost else _record(earlier)  # without its classes, no file of the folder can be written
    left = [
        picture
        for picture in pictures
        if not picture.is_done(recorded.get(_key(out, picture), ""), outputs.formats, listed)
    ]
    shared = _joined(out, outputs.formats) if earlier is None and outputs.folder is not None else []
    foreign = (
        *(path for path in shared if path.exists()),
        *(picture.foreign(outputs.formats, listed) for picture in left),
    )
    if (path := next(filter(None, foreign), None)) is not None:
        raise UserError(
            f"{path} was not written by this program; choose another --out, or add --overwrite to replace it"
        )
    return left


def begin(out: Path, question: Question | None, pictures: Sequence[Picture], outputs: Outputs = ALONE) -> None:
    """Record the question and the pictures, and clear away what could be taken for an answer to it.

    A picture that changes after this is done again next time, whichever state of it is read.

    Args:
        out: as for `to_do`.
        question: the same; None records nothing, so that nothing is taken for done next time, and earlier results
            stay until they are replaced.
        pictures: which it returned.
        outputs: what is written of each.

    Raises:
        UserError: the folder cannot be written.
    """
    with written_to(out):
        out.mkdir(parents=True, exist_ok=True)
        earlier, listed = _read(out), _listed(out)
        recorded = _record(earlier)
        goes_on = question is not None and earlier is not None and not _differing(question, earlier)
        if not goes_on:
            (out / RUN_FILE).unlink(missing_ok=True)  # first: without it, nothing is taken for done
        if question is not None:
            before = _formats(earlier)
            formats = dict.fromkeys((*before, *outputs.formats))
            for path in _joined(out, outputs.formats if goes_on else formats):
                path.unlink(missing_ok=True)
            if not goes_on:
                (out / CLASSES_FILE).unlink(missing_ok=True)
            # A picture that is away keeps its answers to the same question.
            states = {picture: state for picture in pictures if (state := picture.state()) or not goes_on}
            for picture in states:
                key = _key(out, picture)
                ours = key in recorded or picture.summary_is_ours(listed)
                stands = goes_on and recorded.get(key) == states[picture]  # in formats that are not asked for now
                marks = ("json",) if "json" in outputs.formats else outputs.formats  # without which it is not done
                for path in picture.results((outputs.formats if stands else formats) if ours else marks):
                    if _may_be_there(path, listed):
                        path.unlink(missing_ok=True)
            record = (recorded if goes_on else {}) | {_key(out, picture): state for picture, state in states.items()}
            asked = list(formats) if goes_on else list(outputs.formats)
            others = goes_on and recorded.keys() - {_key(out, picture) for picture in pictures}
            drawn = _drawn(earlier) if others else _plain(outputs.drawing)
            text = json.dumps(question | {ASKED: asked, DRAWN: drawn, RECORD: dict(sorted(record.items()))}, indent=1)
            write_whole(out / RUN_FILE, f"{text}\n".encode())
        clear(out, pictures, outputs)


def is_drawn_so(out: Path, outputs: Outputs) -> bool:
    """Whether the overlays in a folder look as it is asked now; those of a program that had no choice look as usual."""
    return _drawn(_read(out)) == _plain(outputs.drawing)


def record_drawing(out: Path, outputs: Outputs) -> None:
    """Note that all overlays in a folder look as it is asked now.

    Raises:
        UserError: the folder cannot be written.
    """
    text = json.dumps((_read(out) or {}) | {DRAWN: _plain(outputs.drawing)}, indent=1)
    with written_to(out):
        write_whole(out / RUN_FILE, f"{text}\n".encode())


def together(out: Path, pictures: Iterable[Picture], outputs: Outputs) -> list[Path]:
    """Write the files of the whole folder, of all its pictures that are done.

    Raises:
        UserError: one of them cannot be written.
    """
    recorded, listed = _record(_read(out)), _listed(out)
    done = [
        picture.target
        for picture in pictures
        if picture.is_done(recorded.get(_key(out, picture), ""), outputs.formats, listed)
    ]
    with written_to(out):
        return join_folder(outputs, done)


def clear(out: Path, pictures: Iterable[Picture], outputs: Outputs = ALONE) -> None:
    """Delete what killed processes left half-written under temporary names (see `files.appearing`)."""
    names = {out: {RUN_FILE, CLASSES_FILE, *(path.name for path in _joined(out, outputs.formats))}}
    for picture in pictures:
        names.setdefault(picture.target.parent, set()).update(path.name for path in picture.results(outputs.formats))
    for folder, known in names.items():
        sweep(folder, known)


def _listed(out: Path) -> Listed:
    """What lies in a folder of results: of a bucket, by a request for a thousand files instead of one for each."""
    return frozenset(map(str, files_below(out).values())) if is_remote(out) else None


def _may_be_there(path: Path, listed: Listed) -> bool:
    return listed is None or str(path) in listed


def _differing(question: Question, earlier: Question) -> list[str]:
    """The words that say what is another question about it."""
    asked = json.loads(json.dumps(question))
    words = [*asked, *(word for word in earlier if word not in asked and word not in (ASKED, DRAWN, RECORD))]
    return [word for word in words if asked.get(word) != earlier.get(word)]


def _drawn(earlier: Question | None) -> dict[str, Any]:
    return (earlier or {}).get(DRAWN) or _plain(None)


def _plain(drawing: Drawing | None) -> dict[str, Any]:
    return dataclasses.asdict(drawing or Drawing())


def _key(out: Path, picture: Picture) -> str:
    return picture.target.relative_to(out).as_posix()


def _formats(earlier: Question | None) -> Sequence[str]:
    """Of earlier results; those of a program that had no others are not named."""
    known = (earlier or {}).get(ASKED)
    return [name for name in known if name in FORMATS] if isinstance(known, list) else DEFAULT


def _joined(out: Path, formats: Iterable[str]) -> list[Path]:
    """Of formats, the files of a whole folder."""
    return [out / file for name in formats for file in FORMATS[name].joined]


def _record(earlier: Question | None) -> dict[str, str]:
    record = (earlier or {}).get(RECORD)
    return record if isinstance(record, dict) else {}


def _read(out: Path) -> Question | None:
    """The question of earlier runs; None where there is none that can be read, and so none to go on with."""
    try:
        earlier = json.loads((out / RUN_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return earlier if isinstance(earlier, dict) else None
