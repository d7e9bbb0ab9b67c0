"""Videos that tests write."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

MILLISECOND = Fraction(1, 1000)


def write_clip(path: Path, frames, times=None, pixels="bgr0", container="matroska", rate=25) -> Path:
    """A video of uint8 [h, w, 3] frames at times in milliseconds, without loss and of any size (FFV1)."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream("ffv1", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = MILLISECOND
        for place, pixels_of in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_of, format="rgb24").reformat(format=pixels)
            frame.pts = times[place] if times else place * 1000 // rate
            frame.time_base = MILLISECOND
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_h264(path: Path, frames, aspect=1) -> Path:
    """A video as a camera writes it, with its index before the frames; sides are even."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=25, options={"g": "4", "bf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def read_clip(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """Pixels and times of all frames, as PyAV has them."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as clip:
        frames = list(clip.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.pts * frame.time_base for frame in frames]


def painted(count: int, size=(24, 32)) -> list[np.ndarray]:
    """Frames of which each has another value in its left half."""
    frames = [np.full((*size, 3), 200, np.uint8) for _ in range(count)]
    for number, frame in enumerate(frames):
        frame[:, : size[1] // 2] = number
    return frames
