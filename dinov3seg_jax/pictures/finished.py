"""Which pictures of a folder are done: a run that was stopped goes on where it was, and never mixes two questions."""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import has_ended, write_whole

RUN_FILE = ".predictions.json"  # hidden, so that no picture's results can have its name
RECORD = "files"  # in it, by the names of their results: the pictures that were asked about, as they were then
SUMMARY = ".json"  # of a picture; written last
OTHERS = (("_overlay.png",), ("_labels.png", "_labels.tif"))  # one of each
OF_CLIPS = ("_overlay.mp4", "_labels")  # of a video: its overlay, and the folder of its frames' labels
LONGEST = "_overlay.png"  # of these ends
NAME_BYTES = 255  # that a file's name can have

Question = dict[str, Any]  # what results depend on, by the words that a user knows it by


class Picture(NamedTuple):
    """What is segmented, and where its results go."""

    path: Path
    target: Path  # folder and stem of their names

    @property
    def summary(self) -> Path:
        """The file that is there when the picture is done."""
        return self._named(SUMMARY)

    def results(self) -> Iterable[Path]:
        """All files that can be written."""
        return map(self._named, (SUMMARY, *(end for ends in OTHERS for end in ends)))

    def state(self) -> str:
        """What tells it from another picture, and from itself before an edit; empty if it is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return ""
        return f"{self.path.name}, {found.st_size} bytes, {found.st_mtime_ns} ns"

    def is_done(self, recorded: str) -> bool:
        """Whether all results are there, and the picture's state is the recorded one."""
        try:
            return recorded == self.state() != "" and all(
                any(self._named(end).exists() for end in ends) for ends in ((SUMMARY,), *OTHERS)
            )
        except OSError:
            return False

    def summary_is_ours(self) -> bool | None:
        """Whether it holds what this program writes; None if there is none."""
        try:
            found = json.loads(self.summary.read_bytes())
        except OSError:
            return None
        except ValueError:
            return False
        return isinstance(found, dict) and {"names", "classes"} <= found.keys()

    def has_long_name(self) -> bool:
        """Whether a result's name, also the temporary one (see `files.write_whole`), is too long for a file."""
        return len(os.fsencode(f".{self.target.name}{LONGEST}.{os.getpid()}")) > NAME_BYTES

    def _named(self, end: str) -> Path:
        return self.target.with_name(self.target.name + end)


def is_result(path: Path) -> bool:
    """Whether a file is an overlay or a label map that this program wrote beside its summary."""
    ends = [*(end for ends in OTHERS for end in ends), *OF_CLIPS]

    def is_beside_ours(path: Path) -> bool:
        stem = next((path.name.removesuffix(end) for end in ends if path.name.endswith(end)), "")
        return bool(stem) and Picture(path, path.with_name(stem)).summary_is_ours() is True

    return is_beside_ours(path) or is_beside_ours(path.parent)


def to_do(out: Path, question: Question, pictures: Sequence[Picture], overwrite: bool) -> list[Picture]:
    """The pictures without results; nothing is written.

    Args:
        out: folder of the results.
        question: that they answer; plain values.
        pictures: of the run.
        overwrite: do all of them, whatever is there.

    Raises:
        UserError: the folder holds the answers to another question, or a file that is nobody's answer in a place of
            theirs.
    """
    if overwrite:
        return list(pictures)
    earlier = _read(out)
    if earlier is not None and (differing := _differing(question, earlier)):
        raise UserError(
            f"{out} holds results of other {' and '.join(differing)}; choose another --out, or add --overwrite to "
            "replace them"
        )
    recorded = _record(earlier)
    left = [picture for picture in pictures if not picture.is_done(recorded.get(_key(out, picture), ""))]
    for picture in left:
        if picture.summary_is_ours() is False:
            raise UserError(
                f"{picture.summary} was not written by this program; choose another --out, or add --overwrite to "
                "replace it"
            )
    return left


def begin(out: Path, question: Question | None, pictures: Sequence[Picture]) -> None:
    """Record the question and the pictures, and clear away what could be taken for an answer to it.

    A picture that changes after this is done again next time, whichever state of it is read.

    Args:
        out: as for `to_do`.
        question: the same; None records nothing, so that nothing is taken for done next time, and earlier results
            stay until they are replaced.
        pictures: which it returned.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        earlier = _read(out)
        recorded = _record(earlier)
        goes_on = question is not None and earlier is not None and not _differing(question, earlier)
        if not goes_on:
            (out / RUN_FILE).unlink(missing_ok=True)  # first: without it, nothing is taken for done
        if question is not None:
            # A picture that is away keeps its answers to the same question.
            states = {picture: state for picture in pictures if (state := picture.state()) or not goes_on}
            for picture in states:
                ours = _key(out, picture) in recorded or picture.summary_is_ours()
                for path in picture.results() if ours else [picture.summary]:
                    path.unlink(missing_ok=True)
            record = (recorded if goes_on else {}) | {_key(out, picture): state for picture, state in states.items()}
            text = json.dumps(question | {RECORD: dict(sorted(record.items()))}, indent=1)
            write_whole(out / RUN_FILE, f"{text}\n".encode())
        clear(out, pictures)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); choose another --out") from error


def clear(out: Path, pictures: Iterable[Picture]) -> None:
    """Delete what killed processes left half-written under temporary names (see `files.write_whole`)."""
    names = {out: {RUN_FILE}}
    for picture in pictures:
        names.setdefault(picture.target.parent, set()).update(path.name for path in picture.results())
    for folder, known in names.items():
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(folder)):
                name, _, process = entry.name.removeprefix(".").rpartition(".")
                if entry.name.startswith(".") and name in known and process.isdecimal() and has_ended(int(process)):
                    Path(entry.path).unlink(missing_ok=True)


def _differing(question: Question, earlier: Question) -> list[str]:
    """The words that say what is another question about it."""
    asked = json.loads(json.dumps(question))
    return [word for word in asked if asked[word] != earlier.get(word)]


def _key(out: Path, picture: Picture) -> str:
    return picture.target.relative_to(out).as_posix()


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
