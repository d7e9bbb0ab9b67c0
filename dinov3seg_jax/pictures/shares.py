"""A folder that several processes segment: each picture is one process's, and the last to end writes what is of all.

They meet once, before the work. From then on none waits for another or hears of its end, so one that dies costs its own
pictures and nothing else: the next run finds them missing, and shares them out again.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import dinov3seg_jax
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.parts import Classes
from dinov3seg_jax.formats.table import FORMATS
from dinov3seg_jax.formats.writing import CLASSES_FILE
from dinov3seg_jax.pictures.batches import neighbours
from dinov3seg_jax.pictures.finished import RUN_FILE, Picture, Question, begin
from dinov3seg_jax.pictures.places import written_to
from dinov3seg_jax.text.class_lists import ClassList

ENDED = f"{RUN_FILE}.ended"  # begins the names of files that say which processes have done their share


def fingerprint(question: Question, pictures: Sequence[Picture], wanted: Collection[Picture]) -> str:
    """What processes have to agree on before they share work out, in a few letters."""
    left = set(wanted)
    seen = [[str(picture.path), picture in left] for picture in pictures]
    said = json.dumps([dinov3seg_jax.__version__, question, seen], sort_keys=True)
    return hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()


def begin_for_all(
    out: Path, question: Question | None, wanted: Sequence[Picture], outputs: Outputs, asked: ClassList
) -> None:
    """What one of the processes does before any of them works; as `finished.begin`, and the same errors.

    The folder's classes are written here, and not by whoever has its first picture: processes on two hosts may have
    one number, and so one temporary name.
    """
    begin(out, question, wanted, outputs)
    with written_to(out):
        for path in out.glob(f"{ENDED}.*"):
            path.unlink(missing_ok=True)
        if outputs.folder is not None and any(FORMATS[name].joined for name in outputs.formats):
            write_whole(out / CLASSES_FILE, Classes(asked.names, asked.colors).to_bytes())


def own_share(
    pictures: Sequence[Picture], wanted: Collection[Picture], batch_size: int, process: int, processes: int
) -> list[Picture]:
    """The wanted pictures of one process; those that may share a batch are one's, so that batches are what they were.

    Args:
        pictures, wanted, batch_size: as for `segment_pictures`.
        process: the number of this one, from 0.
        processes: how many there are.
    """
    left = set(wanted)
    parts = [part for near in neighbours(pictures, batch_size) if (part := [one for one in near if one in left])]
    return [picture for part in parts[process::processes] for picture in part]


def is_last(out: Path, process: int, processes: int) -> bool:
    """Say that a process has done its share; whether all others have, too, and it is for this one to go on.

    Of two that end at once, one is told so, at least where a file can be deleted only once.
    """
    if processes == 1:
        return True
    ended = [out / f"{ENDED}.{number}" for number in range(processes)]
    with written_to(out):
        try:
            write_whole(ended[process], b"")
            if not all(path.exists() for path in ended):
                return False
            ended[0].unlink()
        except FileNotFoundError:  # another was quicker
            return False
    for path in ended[1:]:
        path.unlink(missing_ok=True)
    return True
