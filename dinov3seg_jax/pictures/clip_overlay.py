"""A video's frames tinted by class, as an mp4 (H.264) with the times of its frames."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dinov3seg_jax.data.clips import HD_HEIGHT, Clip, Frame, import_av
from dinov3seg_jax.errors import UserError, reason

ENCODER = "libx264"
OPTIONS = {"crf": "20", "preset": "fast"}  # of x264: hardly a loss to the eye
BT709, LIMITED = 1, 1  # FFmpeg's numbers of a matrix of colours, and of a range
SD = 6  # of BT.601


def write_overlay(
    path: Path,
    clip: Clip,
    frames: Iterable[Frame],
    draw: Callable[[Frame], UInt8[np.ndarray, "h w 3"]],
) -> None:
    """Write the whole of a video, drawn.

    A picture of odd sides gains a row or a column of pixels, as H.264 needs.

    Args:
        path: of the new file.
        clip: the video, which `frames` are read from.
        frames: all of its frames.
        draw: what is shown of a frame, always of one size.

    Raises:
        UserError: the file cannot be written.
    """
    av = import_av()
    try:
        with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"}) as out:
            stream: Any = None
            for frame in frames:
                picture = even(draw(frame))
                stream = stream or _stream(out, clip, picture.shape[:2])
                out.mux(stream.encode(_encodable(picture, frame.time, clip.time_base)))
            out.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise UserError(f"{path.parent} cannot take the overlay ({reason(error)}); choose another --out") from error


def even(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The picture with its last row and column doubled where their number is odd."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _stream(out: Any, clip: Clip, size: tuple[int, int]) -> Any:
    stream = out.add_stream(ENCODER, rate=clip.rate, options=OPTIONS)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    coder = stream.codec_context
    coder.time_base = clip.time_base
    coder.sample_aspect_ratio = clip.aspect
    coder.color_range, coder.colorspace = LIMITED, BT709 if size[0] >= HD_HEIGHT else SD
    return stream


def _encodable(picture: UInt8[np.ndarray, "h w 3"], time: Fraction, time_base: Fraction) -> Any:
    colors = "ITU709" if len(picture) >= HD_HEIGHT else "ITU601"
    whole = import_av().VideoFrame.from_ndarray(picture, format="rgb24")
    frame = whole.reformat(format="yuv420p", dst_colorspace=colors, dst_color_range="MPEG")
    frame.pts, frame.time_base = round(time / time_base), time_base
    return frame
