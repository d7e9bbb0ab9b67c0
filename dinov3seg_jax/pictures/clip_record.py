"""How far a video is done: a line for each frame whose labels are on disk, so that a run can be killed at any moment.

The first line is the question, the second one what all frames have in common. A killed process leaves at most half of
the last line, which is not counted. The file is hidden and stays, as the answer to whether the video is done.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dinov3seg_jax.files import write_whole
from dinov3seg_jax.inference.clips import SegmentedFrame
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures.finished import Question

Mean = Float[np.ndarray, "t h w"]


class ClipRecord:
    """The record of one video, and the mean of scores that a smoothed one goes on from."""

    def __init__(self, target: Path, question: Question, video: str):
        """Name the files.

        Args:
            target: folder and stem of the results' names.
            question: that they answer; plain values.
            video: what tells the video from another (see `finished.Picture.state`).
        """
        self._lines_file = target.with_name(f".{target.name}.frames.jsonl")
        self._mean_file = target.with_name(f".{target.name}.mean.npy")
        self._header = {"question": json.loads(json.dumps(question)), "video": video}

    @property
    def files(self) -> tuple[Path, Path]:
        """Where it is kept."""
        return self._lines_file, self._mean_file

    def fits(self) -> bool:
        """Whether it is of this question about the video as it is now."""
        return bool(self._header["video"]) and self._first() == self._header

    def other_words(self) -> list[str]:
        """The words that say what is another question about an earlier one; empty if it is the same, or there is none.

        Of a video that changed it is the same.
        """
        asked, earlier = self._header["question"], self._first().get("question")
        return [] if earlier is None else [word for word in asked if asked[word] != earlier.get(word)]

    def begin(self, batch_size: int, smoothed: bool) -> tuple[int, Mean | None]:
        """Go on with what fits, or begin anew.

        Args:
            batch_size: frames that run together; a batch is done again if it is not all there.
            smoothed: go on where the mean of the scores is known.

        Returns:
            How many frames are done, and the mean after them.
        """
        if not self.fits():
            self._mean_file.unlink(missing_ok=True)
            write_whole(self._lines_file, f"{json.dumps(self._header)}\n".encode())
        done, mean = sum(1 for _ in self.frames()), None
        if smoothed:
            done, mean = self._read_mean(done)
        done -= done % batch_size
        self._shorten(done)
        return done, mean

    def add(self, frames: Iterable[SegmentedFrame]) -> None:
        """Record frames, whose labels are on disk."""
        with self._lines_file.open("a", encoding="utf-8") as lines:
            for frame in frames:
                if frame.number == 0:
                    lines.write(f"{json.dumps(_common(frame.result))}\n")
                lines.write(f"{json.dumps(_of_frame(frame))}\n")

    def common(self) -> dict[str, Any]:
        """What all frames have in common: "height", "width", "names", "colors" and "recipe"."""
        return next(self._lines(1))

    def frames(self) -> Iterator[dict[str, Any]]:
        """Of each frame that is done "frame", its number; "time", in seconds; and "classes", as in a summary."""
        return self._lines(2)

    def write_mean(self, done: int, mean: Mean) -> None:
        """Keep the mean of scores after so many frames."""
        temporary = self._mean_file.with_name(f"{self._mean_file.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.save(file, done)
            np.save(file, mean)
        os.replace(temporary, self._mean_file)

    def close(self) -> None:
        """Drop what only a run that goes on needs."""
        self._mean_file.unlink(missing_ok=True)

    def _read_mean(self, done: int) -> tuple[int, Mean | None]:
        try:
            with self._mean_file.open("rb") as file:
                after, mean = int(np.load(file)), np.load(file)
        except (OSError, ValueError, EOFError):
            return 0, None
        return (after, mean) if after <= done else (0, None)

    def _first(self) -> dict[str, Any]:
        return next(self._lines(0), {})

    def _lines(self, skipped: int) -> Iterator[dict[str, Any]]:
        try:
            with self._lines_file.open(encoding="utf-8") as lines:
                for place, line in enumerate(lines):
                    if not line.endswith("\n"):
                        return
                    if place >= skipped:
                        yield json.loads(line)
        except (OSError, ValueError):  # none, or of a full disk
            return

    def _shorten(self, frames: int) -> None:
        with self._lines_file.open("rb+") as lines:
            for _ in range(frames + 2 if frames else 1):
                lines.readline()
            lines.truncate(lines.tell())


def _common(result: Segmentation) -> dict[str, Any]:
    height, width = result.labels.shape
    return {
        "height": height,
        "width": width,
        "names": list(result.names),
        "colors": result.colors.tolist(),
        "recipe": result.recipe,
    }


def _of_frame(frame: SegmentedFrame) -> dict[str, Any]:
    present = [found for found in frame.result.summary()["classes"] if found["pixels"]]
    return {"frame": frame.number, "time": frame.time, "classes": present}
