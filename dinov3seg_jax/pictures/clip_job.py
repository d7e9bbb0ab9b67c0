"""A video and its results: which files they are, whether they are there, and whose they are."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import sweep
from dinov3seg_jax.inference.clips import check_clip_options
from dinov3seg_jax.pictures.clip_labels import delete_frames
from dinov3seg_jax.pictures.clip_record import ClipRecord
from dinov3seg_jax.pictures.finished import Picture, Question
from dinov3seg_jax.visualize import Drawing

OVERLAY, FOLDER, ARCHIVE = "_overlay.mp4", "_labels", "_labels.npz"


class ClipOptions(NamedTuple):
    """How a video is segmented."""

    every: int = 1  # each n-th frame is segmented
    smooth: float = 0.0  # weight of the frames before in the mean of scores, in [0, 1)
    archive: bool = False  # labels as one file of NumPy's, not as a folder of PNGs
    drawing: Drawing = Drawing()  # of the overlay

    def question(self) -> Question:
        """What results depend on, by the options that a user knows it by."""
        return {"--every": self.every, "--smooth": self.smooth, "look": dataclasses.asdict(self.drawing)}


class ClipJob:
    """One video, and where its results go."""

    def __init__(self, picture: Picture, question: Question, options: ClipOptions):
        """Name the files; `question` is that about pictures.

        Raises:
            UserError: the options cannot be used.
        """
        check_clip_options(options.every, options.smooth)
        self.picture, self.options = picture, options
        self.overlay, self.folder, self.archive = map(self._named, (OVERLAY, FOLDER, ARCHIVE))
        self.labels = self.archive if options.archive else self.folder
        self.record = ClipRecord(picture.target, question | options.question(), picture.state())

    def is_done(self) -> bool:
        """Whether all results are there, of the video as it is now."""
        return self.record.fits() and all(path.exists() for path in (self.overlay, self.labels, self.picture.summary))

    def damage(self) -> str:
        """What the summary of a video that is done says of its damage; empty where it had none."""
        return json.loads(self.picture.summary.read_bytes()).get("damage", "")

    def refuse_others(self) -> None:
        """Raise a `UserError` where there are results of another question, or a file that is nobody's."""
        if words := self.record.other_words():
            raise UserError(
                f"{self.overlay.parent} holds results of {self.picture.path.name} with other {' and '.join(words)}; "
                "choose another --out, or add --overwrite to replace them"
            )
        if self.picture.summary_is_ours() is False:
            raise UserError(
                f"{self.picture.summary} was not written by this program; choose another --out, or add --overwrite to "
                "replace it"
            )

    def forget(self) -> None:
        """Delete earlier results; files that are nobody's stay until they are replaced."""
        record, mean = self.record.files
        ours = (self.overlay, self.archive, mean, record) if record.exists() else ()
        for path in (self.picture.summary, *ours):
            path.unlink(missing_ok=True)
        delete_frames(self.folder)

    def clear(self) -> None:
        """Delete what killed processes left half-written under temporary names (see `files.appearing`)."""
        ours = (*self.record.files, self.overlay, self.archive, self.picture.summary)
        sweep(self.overlay.parent, {path.name for path in ours})
        sweep(self.folder)

    def _named(self, end: str) -> Path:
        return self.picture.target.with_name(self.picture.target.name + end)


def clips_to_do(jobs: Sequence[ClipJob], overwrite: bool) -> list[ClipJob]:
    """The videos whose results are not all there; nothing is written.

    Raises:
        UserError: a place holds the answer to another question, or a file that is nobody's.
    """
    if overwrite:
        return list(jobs)
    left = [job for job in jobs if not job.is_done()]
    for job in left:
        job.refuse_others()
    return left
