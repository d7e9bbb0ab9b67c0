"""The videos among what `dinov3seg predict` is given."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dinov3seg_jax.cli.parsing import count
from dinov3seg_jax.data.clips import Frame, import_av
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.pictures.clip_job import ClipJob, ClipOptions, clips_to_do
from dinov3seg_jax.pictures.finished import Picture, Question
from dinov3seg_jax.places import is_remote
from dinov3seg_jax.text.class_lists import ClassList
from dinov3seg_jax.visualize import Drawing

if TYPE_CHECKING:
    from dinov3seg_jax.inference.base import BaseSegmenter


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how videos are segmented."""
    group = parser.add_argument_group("videos (extra 'video')")
    group.add_argument(
        "--every", type=count, default=1, metavar="N", help="segment each n-th frame; default: %(default)s"
    )
    group.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="X",
        help="weight of earlier frames in a mean of scores, from 0, for none, to below 1",
    )
    group.add_argument(
        "--label_stream",
        choices=("png", "npz"),
        default="png",
        help="labels as a folder of PNGs, or as one file of NumPy's; default: %(default)s",
    )


class Videos:
    """The videos of a command line.

    Attributes:
        left: those whose results are not all there.
        failed: how many could not be segmented, or not to their end.
    """

    def __init__(self, clips: Sequence[Picture], question: Question, options: argparse.Namespace, drawing: Drawing):
        """Look at what is done.

        Raises:
            UserError: a place holds the answer to another question, or PyAV is missing.
        """
        if clips:
            import_av()
            if is_remote(options.out):
                raise UserError(
                    f"the results of {clips[0].path}, a video, are written piece by piece, which {options.out} cannot "
                    "hold; choose an --out on this machine"
                )
        asked = ClipOptions(options.every, options.smooth, options.label_stream == "npz", drawing)
        jobs = [ClipJob(clip, question, asked) for clip in clips]
        self._overwrite, self._batch = options.overwrite, options.batch
        self.left = clips_to_do(jobs, options.overwrite)
        self.failed = 0
        for job in jobs:
            if job not in self.left:
                print(f"{job.picture.path} is done already", flush=True)
                self._tell(job.damage())

    def segment(self, model: "BaseSegmenter", asked: ClassList, describe: Callable[[dict[str, Any]], str]) -> None:
        """Segment what is left, and say what became of each; `describe` has words for a summary."""
        from dinov3seg_jax.pictures.clips import segment_clip

        for job in self.left:
            started = time.perf_counter()
            outcome = segment_clip(model, asked, job, self._batch, self._overwrite, _watch)
            if (summary := outcome.summary) is not None:
                seconds = time.perf_counter() - started
                print(
                    f"{job.picture.path}: {summary['frames']} frames in {seconds:.1f} s, {describe(summary)} -> "
                    f"{job.overlay}",
                    flush=True,
                )
            self._tell(outcome.error)

    def _tell(self, error: str) -> None:
        if error:
            print(f"error: {error}", file=sys.stderr)
            self.failed += 1


def _watch(frames: Iterable[Frame], word: str, total: int | None) -> Iterable[Frame]:
    """Show how far it is, where somebody watches."""
    return tqdm(frames, desc=word, total=total, unit="frame", dynamic_ncols=True, disable=None)
