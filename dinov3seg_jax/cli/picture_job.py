"""The pictures of a command line: which are left to do, with what question, and what is said of each."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from dinov3seg_jax.cli.drawing import drawing_of
from dinov3seg_jax.cli.request import Request, with_own_config
from dinov3seg_jax.cli.results import outputs_of
from dinov3seg_jax.data.clips import is_clip
from dinov3seg_jax.data.scenes import View
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.pictures.finished import Picture, Question, to_do, together
from dinov3seg_jax.pictures.listing import Listing, describe_passed_over, find_pictures
from dinov3seg_jax.pictures.places import output_places, titles

if TYPE_CHECKING:
    from dinov3seg_jax.pictures.batches import Outcome

CLASSES_SHOWN = 5


@dataclasses.dataclass
class PictureJob:
    """Pictures and what is asked of them.

    Attributes:
        request: with the model's own config.
        out: folder of the results.
        listing: all that was named.
        pictures: among it, videos aside.
        clips: the videos.
        of_folder: whether results are recorded, and put together; not those of a picture that was named by itself.
        view, outputs, question: as for `segment_pictures` and `finished.to_do`.
        wanted: the pictures that are left to do.
        skipped: those that are done.
        unnameable: how many have too long a name.
    """

    request: Request
    out: Path
    listing: Listing
    pictures: list[Picture]
    clips: list[Picture]
    of_folder: bool
    view: View
    outputs: Outputs
    question: Question
    wanted: list[Picture]
    skipped: list[Picture]
    unnameable: int

    @classmethod
    def of(cls, options: argparse.Namespace, request: Request, named: Sequence[Path]) -> "PictureJob":
        """Look at what was named, and at what is done; says both.

        Raises:
            UserError: there are no pictures, or the folder of results is another question's.
        """
        listing = find_pictures(named)
        request = with_own_config(request)
        clips: list[Picture] = []
        pictures: list[Picture] = []
        for picture in placed(listing.roots, options.out):
            (clips if is_clip(picture.path) else pictures).append(picture)
        of_folder = not listing.single
        outputs = outputs_of(options, of_folder, request.asked.names)._replace(drawing=drawing_of(options))
        view = View(options.bands, options.stretch)
        question = question_of(named, request, view, outputs)
        wanted = to_do(options.out, question, pictures, options.overwrite, outputs)
        left = set(wanted)
        skipped = [picture for picture in pictures if picture not in left]
        if skipped:
            print(f"{len(skipped)} of {len(pictures)} pictures are done already", flush=True)
        unnameable = [picture for picture in wanted if picture.has_long_name(outputs.formats)]
        for picture in unnameable:
            print(f"error: {picture.path} has a name that is too long for its results; shorten it", file=sys.stderr)
            wanted.remove(picture)
        return cls(
            request, options.out, listing, pictures, clips, of_folder, view, outputs, question, wanted, skipped,
            len(unnameable),
        )  # fmt: skip

    def finish(self) -> None:
        """Write the files of the whole folder, and name them."""
        if self.of_folder and self.pictures:
            for path in together(self.out, self.pictures, self.outputs):
                print(f"all pictures -> {path}", flush=True)

    def tell_of_others(self) -> None:
        """Name what was passed over."""
        if passed_over := describe_passed_over(self.listing.passed_over):
            print(f"note: {passed_over}", file=sys.stderr)


def placed(roots: Mapping[Path, Path], out: Path) -> list[Picture]:
    """Files with the places of their results; arguments as for `output_places`."""
    return list(map(Picture, roots, output_places(roots, out), titles(roots)))


def question_of(named: Sequence[Path], request: Request, view: View, outputs: Outputs) -> Question:
    """All that results depend on; see `finished.to_do`."""
    sources = [str(path.resolve()) for path in named]
    pictures = sources[0] if len(sources) == 1 else sources
    return {"pictures": pictures} | request.question() | view.question() | outputs.question()


class Tally(NamedTuple):
    """What became of pictures."""

    done: int
    failed: int
    seconds: float

    def tell(self, total: int, out: Path) -> None:
        """Say it, of so many pictures that were named."""
        speed = f"{self.done / self.seconds:.2f} images/s"
        print(f"{self.done} pictures in {self.seconds:.1f} s, {speed}; results are in {out}", flush=True)
        if self.failed:
            print(f"error: {self.failed} of {total} pictures could not be segmented; see above", file=sys.stderr)


def follow(
    outcomes: "Iterable[Outcome]", count: int | None, outputs: Outputs, out: Path, of_folder: bool = True
) -> Tally:
    """Say what becomes of each picture, above a bar where somebody watches.

    Args:
        outcomes: as they come.
        count: of the pictures; None: not known yet.
        outputs: what is written of each.
        out: folder of the results.
        of_folder: whether they are several.
    """
    done, failed, started = 0, 0, time.perf_counter()
    hidden = None if of_folder else True  # None: where nobody watches
    for outcome in tqdm(outcomes, total=count, unit="image", dynamic_ncols=True, disable=hidden):
        with tqdm.external_write_mode():  # above the bar
            if outcome.summary is None:
                failed += 1
                print(f"error: {outcome.error}", file=sys.stderr)
            else:
                done += 1
                shown = outcome.picture.shown(outputs.formats) or out
                print(f"{outcome.picture.path}: {describe(outcome.summary)} -> {shown}", flush=True)
    return Tally(done, failed, time.perf_counter() - started)


def describe(summary: dict[str, Any]) -> str:
    """Size and the largest classes, for one line of output; see `Segmentation.summary`."""
    found = sorted((row for row in summary["classes"] if row["pixels"]), key=lambda row: -row["pixels"])
    shown = [f"{row['name']} {row['fraction']:.1%}" for row in found[:CLASSES_SHOWN]]
    more = [f"{len(found) - CLASSES_SHOWN} more"] if len(found) > CLASSES_SHOWN else []
    without = summary.get("nodata_pixels", 0)
    gaps = [f"{without:,} pixels without data"] if without else []
    return f"{summary['width']} x {summary['height']}, {', '.join(shown + more + gaps)}"
