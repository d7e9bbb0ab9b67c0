"""A video's frames tinted by class, as an mp4 (H.264) with the times of its frames."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dinov3seg_jax import visualize
from dinov3seg_jax.data.clips import HD_HEIGHT, Clip, Frame, import_av
from dinov3seg_jax.errors import UserError, reason

ENCODER = "libx264"
OPTIONS = {"crf": "20", "preset": "fast"}  # of x264: hardly a loss to the eye
MOST_NAMES = 30  # in the legend, the largest
BT709, LIMITED = 1, 1  # FFmpeg's numbers of a matrix of colours, and of a range
SD = 6  # of BT.601


def write_overlay(
    path: Path,
    clip: Clip,
    frames: Iterable[Frame],
    labels: Callable[[int], Int[np.ndarray, "h w"]],
    every: int,
    classes: tuple[list[str], UInt8[np.ndarray, "t 3"], list[int]],
) -> None:
    """Write the whole of a video, tinted.

    Frames between those that were segmented carry the labels of the last one. To the right or below stands a legend
    that is the same in all frames; a picture of odd sides gains a row or a column of pixels, as H.264 needs.

    Args:
        path: of the new file.
        clip: the video, which `frames` are read from.
        frames: all of its frames.
        labels: of a frame by its number.
        every: how many frames lie between two that have labels.
        classes: names, their colours, and which of them are shown in the legend, in this order.

    Raises:
        UserError: the file cannot be written.
    """
    av = import_av()
    names, colors, order = classes
    shown = order[:MOST_NAMES]
    try:
        with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"}) as out:
            stream: Any = None
            for frame in frames:
                if frame.number % every == 0:
                    found = labels(frame.number)
                tinted = visualize.overlay(frame.rgb(), found, colors)
                if stream is None:
                    canvas = even(visualize.with_legend(tinted, [names[index] for index in shown], colors[shown]))
                    stream = _stream(out, clip, canvas.shape[:2])
                _lay(canvas, tinted)
                out.mux(stream.encode(_encodable(canvas, frame.time, clip.time_base)))
            out.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise UserError(f"{path.parent} cannot take the overlay ({reason(error)}); choose another --out") from error


def even(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The picture with its last row and column doubled where their number is odd."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _lay(canvas: UInt8[np.ndarray, "h2 w2 3"], picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Lay a picture into the top left corner, and what it gained at its edges too."""
    height, width = picture.shape[:2]
    canvas[:height, :width] = picture
    if canvas.shape[0] == height + 1:
        canvas[height, :width] = picture[-1]
    if canvas.shape[1] == width + 1:
        canvas[:, width] = canvas[:, width - 1]


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
