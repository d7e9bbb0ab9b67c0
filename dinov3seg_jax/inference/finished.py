"""Which pictures of a folder are done: a run that was stopped goes on where it was, and never mixes two questions."""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole

RUN_FILE = ".predictions.json"  # hidden, so that no picture's results can have its name
SUMMARY = ".json"  # of a picture; written last
OTHERS = (("_overlay.png",), ("_labels.png", "_labels.tif"))  # one of each

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

    def is_done(self) -> bool:
        """Whether all results are there, and newer than the picture."""
        try:
            written = self.summary.stat().st_mtime_ns
            return written >= self.path.stat().st_mtime_ns and all(
                any(self._named(end).exists() for end in ends) for ends in OTHERS
            )
        except OSError:
            return False

    def _named(self, end: str) -> Path:
        return self.target.with_name(self.target.name + end)


def to_do(out: Path, question: Question, pictures: Sequence[Picture], overwrite: bool) -> list[Picture]:
    """The pictures without results; nothing is written.

    Args:
        out: folder of the results.
        question: that they answer; plain values.
        pictures: of the run.
        overwrite: do all of them, whatever is there.

    Raises:
        UserError: the folder holds the answers to another question.
    """
    earlier = _read(out)
    if overwrite or earlier is None:
        return list(pictures)
    asked = json.loads(json.dumps(question))
    if differing := [word for word in asked if asked[word] != earlier.get(word)]:
        raise UserError(
            f"{out} holds results of other {' and '.join(differing)}; choose another --out, or add --overwrite to "
            "replace them"
        )
    return [picture for picture in pictures if not picture.is_done()]


def begin(out: Path, question: Question | None, pictures: Sequence[Picture]) -> None:
    """Record the question, and clear away what could be taken for an answer to it.

    Args:
        out: as for `to_do`.
        question: the same; None records nothing, so that nothing is taken for done next time.
        pictures: which it returned.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(question, indent=1) + "\n"
        if _read(out) != json.loads(text):
            (out / RUN_FILE).unlink(missing_ok=True)  # first: without it, nothing is taken for done
        for picture in pictures:
            picture.summary.unlink(missing_ok=True)
        if question is not None:
            write_whole(out / RUN_FILE, text.encode())
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
                if entry.name.startswith(".") and name in known and process.isdecimal() and _has_ended(int(process)):
                    Path(entry.path).unlink(missing_ok=True)


def _has_ended(process: int) -> bool:
    """Whether no other process has this number, as far as one host can tell."""
    if process == os.getpid():  # which has written nothing yet
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False


def _read(out: Path) -> Question | None:
    """The question of earlier runs; None where there is none that can be read, and so none to go on with."""
    try:
        earlier = json.loads((out / RUN_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return earlier if isinstance(earlier, dict) else None
