"""Frames of a video as pictures, whose scores may be averaged over time."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from dinov3seg_jax.data.clips import Frame
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.class_lists import ClassList

Segment = Callable[[list[UInt8[np.ndarray, "h w 3"]]], list[Segmentation]]


class SegmentedFrame(NamedTuple):
    """One frame of a video.

    Attributes:
        number: from 0, of all frames of the video.
        time: in seconds from the first frame.
        result: its labels, and its pixels.
    """

    number: int
    time: float
    result: Segmentation


class Smoothing:
    """An exponential mean of scores over frames: each new frame has the weight 1 - `weight`.

    Attributes:
        mean: of the frames so far, in [0, 1]; None before the first.
    """

    def __init__(self, weight: float, asked: ClassList, mean: Float[np.ndarray, "t h w"] | None = None):
        """Begin, or go on from an earlier `mean`; a weight of 0 changes nothing."""
        self.weight, self.mean, self._asked = weight, mean, asked

    def __call__(self, result: Segmentation) -> Segmentation:
        """The next frame, which has scores, with the labels and confidence that the mean gives it."""
        if not self.weight:
            return result
        scores = result.scores
        assert scores is not None, "asked for by whoever smooths"
        self.mean = scores if self.mean is None else self.mean + np.float32(1 - self.weight) * (scores - self.mean)
        labels, confidence = self.mean.argmax(axis=0).astype(np.int32), self.mean.max(axis=0)
        if self._asked.has_unknown:
            labels[confidence < self._asked.min_confidence] = len(self._asked.names) - 1
        return dataclasses.replace(result, labels=labels, confidence=confidence, scores=None)


def check_clip_options(every: int, smooth: float) -> None:
    """Raise a `UserError` if a video cannot be segmented so."""
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
        raise UserError(f"every is {one_line(repr(every), 60)}; give a whole number above 0, as 5 for each fifth frame")
    number = isinstance(smooth, int | float | np.floating) and not isinstance(smooth, bool)
    if not (number and math.isfinite(smooth) and 0 <= smooth < 1):
        raise UserError(
            f"smooth is {one_line(repr(smooth), 60)}; give a number from 0, for none, to below 1, as 0.8 for the mean "
            "of about five frames"
        )


def segment_frames(
    segment: Segment, frames: Iterable[Frame], smoothing: Smoothing, batch_size: int
) -> Generator[list[SegmentedFrame]]:
    """Segment frames, a batch at a time, while the next one is decoded.

    Args:
        segment: of the pixels of a batch.
        frames: those that are wanted.
        smoothing: over them.
        batch_size: frames that run together.
    """
    pixels = ((frame, frame.rgb()) for frame in frames)
    with ThreadPoolExecutor(1) as reader:

        def read() -> list[tuple[Frame, np.ndarray]]:
            return list(itertools.islice(pixels, batch_size))

        reading = reader.submit(read)
        while batch := reading.result():
            reading = reader.submit(read)
            results = map(smoothing, segment([rgb for _, rgb in batch]))
            yield [
                SegmentedFrame(frame.number, float(frame.time), result)
                for (frame, _), result in zip(batch, results, strict=True)
            ]
