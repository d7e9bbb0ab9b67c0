"""Videos: labels of every frame, an overlay as a video and a summary, safe to stop at any moment.

The labels of each frame are written at once, and recorded (`clip_record`). The overlay and the summary are made of
them in the end, while the video is decoded a second time. So memory holds two batches of frames, and a run that was
killed goes on with the batch it was at.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, UInt8

from dinov3seg_jax import visualize
from dinov3seg_jax.data.clips import Clip, Frame, open_clip
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import appearing
from dinov3seg_jax.inference.base import BaseSegmenter
from dinov3seg_jax.inference.clips import Smoothing, segment_frames
from dinov3seg_jax.inference.result import summarize
from dinov3seg_jax.pictures.batches import THREADS, Outcome
from dinov3seg_jax.pictures.clip_job import ClipJob
from dinov3seg_jax.pictures.clip_labels import delete_frames, read_frame, write_archive, write_frame
from dinov3seg_jax.pictures.clip_overlay import write_overlay
from dinov3seg_jax.text.class_lists import ClassList

SECONDS_BETWEEN_MEANS = 10  # of which at most so many are lost where scores are smoothed

Watch = Callable[[Iterable[Frame], str, int | None], Iterable[Frame]]  # frames that pass by, a word, how many


def segment_clip(
    model: BaseSegmenter,
    asked: ClassList,
    job: ClipJob,
    batch_size: int,
    anew: bool = False,
    watch: Watch = lambda frames, *_: frames,
) -> Outcome:
    """Segment a video, or the rest of it, and write its results.

    Args:
        model: any.
        asked: what `model.check_names` returned.
        job: the video.
        batch_size: frames that run together.
        anew: begin at its first frame, whatever is done.
        watch: sees all frames pass by, twice: while they are segmented, and while the overlay is written.

    Returns:
        What became of it. One with a damaged end has a summary and an error.
    """
    try:
        return _segment(model, asked, job, batch_size, anew, watch)
    except UserError as error:
        return Outcome(job.picture, None, str(error))
    except OSError as error:
        place = job.overlay.parent
        return Outcome(job.picture, None, f"{place} cannot be written ({reason(error)}); choose another --out")


def _segment(
    model: BaseSegmenter, asked: ClassList, job: ClipJob, batch_size: int, anew: bool, watch: Watch
) -> Outcome:
    every, smooth = job.options.every, job.options.smooth
    with open_clip(job.picture.path) as clip:
        if anew or not job.record.fits():
            job.forget()
        job.folder.mkdir(parents=True, exist_ok=True)
        job.clear()
        done, mean = job.record.begin(batch_size, bool(smooth))
        smoothing, saved = Smoothing(smooth, asked, mean), time.monotonic()
        wanted = (frame for frame in watch(clip, "frames", clip.expected) if frame.number % every == 0)
        left = (frame for place, frame in enumerate(wanted) if place >= done)
        segment = partial(model.segment_arrays, names=asked, batch_size=batch_size, scores=bool(smooth))
        batches = segment_frames(segment, left, smoothing, batch_size)
        with contextlib.closing(batches), ThreadPoolExecutor(THREADS) as writers:
            for batch in batches:
                list(writers.map(partial(write_frame, job.folder), batch))
                job.record.add(batch)
                done += len(batch)
                if smoothing.mean is not None and time.monotonic() - saved > SECONDS_BETWEEN_MEANS:
                    job.record.write_mean(done, smoothing.mean)
                    saved = time.monotonic()
    return _finish(job, clip, watch)


def _finish(job: ClipJob, read: Clip, watch: Watch) -> Outcome:
    """Make the overlay and the summary of the labels; `read` is the video, read once."""
    summary = _summary(job, read)
    with open_clip(job.picture.path) as clip, appearing(job.overlay) as place:
        write_overlay(place, clip, watch(clip, "overlay", summary["frames"]), _painter(job, summary))
    if job.options.archive:
        with appearing(job.archive) as place, place.open("wb") as file:
            times = {frame["frame"]: frame["time"] for frame in job.record.frames()}
            write_archive(file, job.folder, times, summary["names"])
    with appearing(job.picture.summary) as place, place.open("wb") as file:
        _write_summary(file, summary, job.record.frames())
    job.record.close()
    if job.options.archive:
        delete_frames(job.folder)
    return Outcome(job.picture, summary, read.damage)


def _painter(job: ClipJob, summary: dict[str, Any]) -> Callable[[Frame], UInt8[np.ndarray, "h w 3"]]:
    """Draws frames, each with the labels of the last one that has some, and the legend of the whole video."""
    names, every = summary["names"], job.options.every
    colors = np.array(job.record.common()["colors"], np.uint8)
    counts = np.array([found["pixels"] for found in summary["classes"]])

    @functools.lru_cache(maxsize=1)
    def labels(number: int) -> Int[np.ndarray, "h w"]:
        return read_frame(job.folder, number)

    def draw(frame: Frame) -> UInt8[np.ndarray, "h w 3"]:
        found = labels(frame.number // every * every)
        return visualize.draw(frame.rgb(), found, names, colors, job.options.drawing, counts, summary["nodata_pixels"])

    return draw


def _summary(job: ClipJob, clip: Clip) -> dict[str, Any]:
    """What is told of a video, but for its single frames."""
    common = job.record.common()
    names = common["names"]
    place = {name: index for index, name in enumerate(names)}
    pixels, sums, segmented = np.zeros(len(names), np.int64), np.zeros(len(names)), 0
    for frame in job.record.frames():
        segmented += 1
        for found in frame["classes"]:
            pixels[place[found["name"]]] += found["pixels"]
            sums[place[found["name"]]] += found["pixels"] * (found["mean_confidence"] or 0)
    whole = summarize((common["height"] * segmented, common["width"]), names, pixels, sums)
    video = {
        "file": job.picture.path.name,
        "labels": job.labels.name,
        "frames": clip.frames_read,
        "frames_segmented": segmented,
        "frames_per_second": float(clip.rate),
    }
    options = {"every": job.options.every, "smooth": job.options.smooth}
    damage = {"damage": clip.damage} if clip.damage else {}
    return video | options | whole | {"height": common["height"]} | common["recipe"] | damage


def _write_summary(file: BinaryIO, summary: dict[str, Any], frames: Iterator[dict[str, Any]]) -> None:
    """The summary with a list of its frames, "segmented", of which never more than one is in memory."""
    head = json.dumps(summary, indent=2, ensure_ascii=False).removesuffix("\n}")
    file.write(f'{head},\n  "segmented": ['.encode(errors="replace"))
    for place, frame in enumerate(frames):
        line = json.dumps(frame, ensure_ascii=False)
        file.write(f"{',' if place else ''}\n    {line}".encode(errors="replace"))
    file.write(b"\n  ]\n}\n")
