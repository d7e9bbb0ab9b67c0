"""Pictures that are done or not done together: those of a shard, and those of a table of results.

What says that a unit is done is written last, whole, and names the state of the pictures that it was made from. So a
unit whose worker died is done again from its beginning, and nothing has to be recorded elsewhere.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dinov3seg_jax.cluster.shards import members
from dinov3seg_jax.cluster.tables import Made, made_from, write_table
from dinov3seg_jax.cluster.work import Asked, Segment
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import sweep, write_whole
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.pictures.batches import BATCHES_LOOKED_AT, Outcome, neighbours
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.pictures.places import written_to
from dinov3seg_jax.places import is_remote

IN_A_TABLE = Outputs(("labels", "json"))  # what is written of a picture, for a row to be made of it
TIFF_STARTS = (b"II*\0", b"MM\0*")


@dataclasses.dataclass(frozen=True)
class Unit:
    """Some pictures, and where their results go.

    Attributes:
        target: folder and stem of the results: `STEM.parquet`, or a folder `STEM`.
        table: whether it is the first.
        pictures: whole parts of `batches.neighbours`; none for those of a shard.
        shard: what holds them.
    """

    target: Path
    table: bool
    pictures: tuple[Picture, ...] = ()
    shard: Picture | None = None

    @property
    def mark(self) -> Path:
        """The file that says that it is done."""
        name = self.target.name
        return self.target.with_name(f"{name}.parquet" if self.table else f".{name}.done")

    def state(self) -> str:
        """What tells its pictures from others, and from themselves before an edit."""
        if self.shard is not None:
            return self.shard.state()
        said = json.dumps([[picture.title, picture.state()] for picture in self.pictures])
        return hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()

    def is_done(self) -> bool:
        """Whether all its results are there, and are those of its pictures as they are now."""
        made = made_from(self.mark) if self.table else _marked(self.mark)
        return made is not None and made == Made(self.state(), 0)

    def named(self) -> Sequence[Picture]:
        """See `work.Piece`."""
        return self.pictures if self.shard is None else [self.shard]

    def segment(self, segment: Segment, asked: Asked) -> Iterator[Outcome]:
        """See `work.Piece`.

        Raises:
            UserError: the shard cannot be read, or the results cannot be written.
        """
        state, failed, rows = self.state(), 0, []
        with tempfile.TemporaryDirectory(prefix="dinov3seg-") as folder:
            for near in self._near(asked.batch_size, Path(folder)):
                found = {}
                for outcome in segment(near, near, IN_A_TABLE if self.table else asked.outputs):
                    failed += outcome.summary is None
                    found[outcome.picture] = _row(outcome) if self.table else {}
                    yield _as_named(outcome)
                rows += [found[picture] for picture in near]
                for file in Path(folder).iterdir():
                    file.unlink()
        made = Made(state, failed)
        with written_to(self.mark):
            self.mark.parent.mkdir(parents=True, exist_ok=True)
            if self.table:
                write_table(self.mark, rows, asked.names.names, made)
            else:
                write_whole(self.mark, json.dumps(made._asdict()).encode())

    def _near(self, batch_size: int, folder: Path) -> Iterator[Sequence[Picture]]:
        """The pictures as files, those that may share a batch together; what is not kept goes to a folder."""
        if self.shard is None:
            for number, near in enumerate(neighbours(self.pictures, batch_size)):
                yield [
                    picture._replace(target=folder / f"{number}_{place}", file=picture.title)
                    for place, picture in enumerate(near)
                ]
            return
        near, taken = [], set[str]()
        for name, content in _opened(self.shard.path):
            place = _place(name, taken)
            file = folder / f"{len(taken)}{_ending(name, content)}"
            file.write_bytes(content)
            target = folder / f"{len(taken)}" if self.table else self.target / place
            near.append(Picture(file, target, f"{self.shard.title}/{name}"))
            if len(near) == BATCHES_LOOKED_AT * batch_size:
                yield near
                near = []
        if near:
            yield near


def clear_units(units: Iterable[Unit]) -> None:
    """Delete what workers that died left half-written: beside the results, which others wrote since."""
    marks = defaultdict[Path, set[str]](set)  # by folder, which many units share
    for unit in units:
        marks[unit.mark.parent].add(unit.mark.name)
        if not unit.table and not is_remote(unit.target):
            for folder, _, files in os.walk(unit.target):
                sweep(Path(folder), frozenset(files))
    for beside, names in marks.items():
        sweep(beside, names)


def _opened(shard: Path) -> Iterable[tuple[str, bytes]]:
    try:
        yield from members(shard)
    except OSError as error:
        raise UserError(f"{shard} cannot be read ({reason(error)}); check it and its permissions") from error


def _place(name: str, taken: set[str]) -> str:
    """Where a picture of a shard has its results below the shard's own folder; none is another's."""
    path = PurePosixPath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..")))
    stem = path.name.partition(".")[0] or path.name
    choices = (stem, path.name.replace(".", "_"), f"{stem}_{len(taken)}")
    place = next(str(path.with_name(word)) for word in choices if str(path.with_name(word)) not in taken)
    taken.add(place)
    return place


def _ending(name: str, content: bytes) -> str:
    """Of a file for a picture: one that readers of its kind know."""
    return ".tif" if content.startswith(TIFF_STARTS) else PurePosixPath(name).suffix[:8]


def _as_named(outcome: Outcome) -> Outcome:
    """An outcome that does not speak of temporary files."""
    picture = outcome.picture
    error = outcome.error.replace(str(picture.path), picture.title)
    return Outcome(picture._replace(path=Path(picture.title)), outcome.summary, error)


def _row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"path": outcome.picture.title, "error": _as_named(outcome).error or None}
    if (summary := outcome.summary) is not None:
        labels = outcome.picture.shown(["labels"])
        assert labels is not None
        classes = summary["classes"]
        row |= {"width": summary["width"], "height": summary["height"], "labels": labels.read_bytes()}
        row["areas"] = [one["pixels"] for one in classes]
        row["confidences"] = [one["mean_confidence"] for one in classes]
    return row


def _marked(path: Path) -> Made | None:
    try:
        return Made(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
