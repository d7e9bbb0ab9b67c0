"""`dinov3seg predict`: pictures in, overlays, label images and a summary of each out.

JAX is loaded when everything that can be checked without it is checked, since that takes seconds.
"""

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dinov3seg_jax.cli.clips import Videos, add_clip_arguments
from dinov3seg_jax.cli.drawing import add_drawing_arguments, draw_again, drawing_of
from dinov3seg_jax.cli.parsing import Command, amount_of_memory, given_path
from dinov3seg_jax.cli.request import (
    Request,
    add_class_arguments,
    add_model_arguments,
    check_request,
    load_model,
    with_own_config,
)
from dinov3seg_jax.cli.results import add_format_arguments, outputs_of
from dinov3seg_jax.data.clips import is_clip
from dinov3seg_jax.data.scenes import View, parse_bands
from dinov3seg_jax.data.stretch import parse_stretch
from dinov3seg_jax.pictures.finished import Picture, begin, to_do, together
from dinov3seg_jax.pictures.listing import Listing, describe_passed_over, find_pictures, standard_input
from dinov3seg_jax.pictures.places import output_places, refuse_place, titles
from dinov3seg_jax.places import check_writable

DESCRIPTION = "segment pictures into classes you name"
CLASSES_SHOWN = 5
OBJECTS = 100_000  # that are made between two garbage collections; Python's own 700 take an eighth of a start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--image",
        type=given_path,
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="pictures or videos, folders of them, patterns like 'photos/*.jpg', or - for standard input",
    )
    asked.add_argument(
        "--classes",
        nargs="+",
        required=True,
        metavar="NAMES",
        help='"red circle, grass", or @FILE with a list of any kind (docs/class_lists.md)',
    )
    add_class_arguments(parser)
    shown = parser.add_argument_group("rasters of many bands, or of more than 8 bits")
    shown.add_argument(
        "--bands",
        type=parse_bands,
        default=(),
        metavar="N,N,N",
        help="that are red, green and blue, as in 4,3,2; or one",
    )
    shown.add_argument(
        "--stretch",
        type=parse_stretch,
        metavar="RANGE",
        help="what becomes black and white: percentiles as in 2,98, or minmax, or values as in 0:3000",
    )
    add_clip_arguments(parser)
    add_model_arguments(parser)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=given_path, default=Path("predictions"), metavar="FOLDER", help="default: %(default)s"
    )
    results.add_argument("--overwrite", action="store_true", help="segment every picture of a folder again")
    add_format_arguments(results)
    add_drawing_arguments(parser)
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--memory",
        type=memory_size,
        metavar="SIZE",
        help="as in 4GB: pictures that need more are segmented tile by tile; default: auto, half of the free memory",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Segment a picture, or many.

    Of many, a picture that cannot be read is reported, and the others are segmented; and what an earlier run with
    the same question has done is passed over (see `pictures.finished`).

    Raises:
        UserError: no picture can be segmented with these arguments.
    """
    request = check_request(options, overrides)
    with standard_input(options.image) as named:
        refuse_place(named, options.out)
        check_writable(options.out)
        return _segment(options, request, named)


def _segment(options: argparse.Namespace, request: Request, named: Sequence[Path]) -> int:
    listing = find_pictures(named)
    request = with_own_config(request)
    places = output_places(listing.roots, options.out)
    found = list(map(Picture, listing.roots, places, titles(listing.roots)))
    clips: list[Picture] = []
    pictures: list[Picture] = []
    for picture in found:
        (clips if is_clip(picture.path) else pictures).append(picture)
    of_folder = not listing.single
    drawing = drawing_of(options)
    outputs = outputs_of(options, of_folder, request.asked.names)._replace(drawing=drawing)
    sources = [str(path.resolve()) for path in named]
    view = View(options.bands, options.stretch)
    question = {"pictures": sources[0] if len(sources) == 1 else sources} | request.question() | view.question()
    question |= outputs.question()
    wanted = to_do(options.out, question, pictures, options.overwrite, outputs)
    videos = Videos(clips, request.question(), options, drawing)
    left = set(wanted)
    skipped = [picture for picture in pictures if picture not in left]
    if skipped:
        print(f"{len(skipped)} of {len(pictures)} pictures are done already", flush=True)
    undrawn = draw_again(options.out, skipped, view, outputs)
    unnameable = [picture for picture in wanted if picture.has_long_name(outputs.formats)]
    for picture in unnameable:
        print(f"error: {picture.path} has a name that is too long for its results; shorten it", file=sys.stderr)
        wanted.remove(picture)
    if not wanted and not videos.left:
        if of_folder and pictures:
            _tell_of_files(together(options.out, pictures, outputs))
        _tell_of_others(listing)
        return 2 if unnameable or undrawn or videos.failed else 0

    gc.set_threshold(OBJECTS)
    from dinov3seg_jax.pictures.batches import Outcome, segment_pictures
    from dinov3seg_jax.pictures.huge import auto_memory

    model, asked = load_model(request)
    if pictures or of_folder:
        begin(options.out, question if of_folder else None, wanted, outputs)

    def report(outcome: Outcome) -> None:
        with tqdm.external_write_mode():  # above the bar
            if outcome.summary is None:
                print(f"error: {outcome.error}", file=sys.stderr)
            else:
                shown = outcome.picture.shown(outputs.formats) or options.out
                print(f"{outcome.picture.path}: {describe(outcome.summary)} -> {shown}", flush=True)

    batch_size = min(options.batch, max(len(pictures), 1))
    memory = options.memory or auto_memory()
    outcomes = segment_pictures(model, asked, pictures, set(wanted), batch_size, memory, view, outputs)
    done, started = 0, time.perf_counter()
    hidden = None if of_folder else True  # None: where nobody watches
    for outcome in tqdm(outcomes, total=len(wanted), unit="image", dynamic_ncols=True, disable=hidden):
        report(outcome)
        done += outcome.summary is not None
    seconds, failed = time.perf_counter() - started, len(unnameable) + len(wanted) - done
    if of_folder and pictures:
        _tell_of_files(together(options.out, pictures, outputs))
        print(
            f"{done} pictures in {seconds:.1f} s, {done / seconds:.2f} images/s; results are in {options.out}",
            flush=True,
        )
        if failed:
            print(f"error: {failed} of {len(pictures)} pictures could not be segmented; see above", file=sys.stderr)
    videos.segment(model, asked, describe)
    _tell_of_others(listing)
    return 2 if failed or undrawn or videos.failed else 0


def _tell_of_files(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"all pictures -> {path}", flush=True)


def _tell_of_others(listing: Listing) -> None:
    if passed_over := describe_passed_over(listing.passed_over):
        print(f"note: {passed_over}", file=sys.stderr)


def describe(summary: dict[str, Any]) -> str:
    """Size and the largest classes, for one line of output; see `Segmentation.summary`."""
    found = sorted((row for row in summary["classes"] if row["pixels"]), key=lambda row: -row["pixels"])
    shown = [f"{row['name']} {row['fraction']:.1%}" for row in found[:CLASSES_SHOWN]]
    more = [f"{len(found) - CLASSES_SHOWN} more"] if len(found) > CLASSES_SHOWN else []
    without = summary.get("nodata_pixels", 0)
    gaps = [f"{without:,} pixels without data"] if without else []
    return f"{summary['width']} x {summary['height']}, {', '.join(shown + more + gaps)}"


def memory_size(text: str) -> int | None:
    """Bytes; None for "auto".

    Raises:
        UserError: it is neither, or too small to be meant.
    """
    return None if text == "auto" else amount_of_memory(text, ", or auto")


COMMAND = Command("predict", DESCRIPTION, add_arguments, run)
main = COMMAND.main
