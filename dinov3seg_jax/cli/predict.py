"""`dinov3seg predict`: pictures in, overlays, label images and a summary of each out.

JAX is loaded when everything that can be checked without it is checked, since that takes seconds.
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from dinov3seg_jax.cli.clips import Videos, add_clip_arguments
from dinov3seg_jax.cli.cluster import add_cluster_arguments, check_cluster_arguments, segment_on_cluster
from dinov3seg_jax.cli.drawing import add_drawing_arguments, draw_again
from dinov3seg_jax.cli.parsing import Command, amount_of_memory, given_path
from dinov3seg_jax.cli.picture_job import PictureJob, describe, follow
from dinov3seg_jax.cli.request import Request, add_class_arguments, add_model_arguments, check_request, load_model
from dinov3seg_jax.cli.results import add_format_arguments
from dinov3seg_jax.data.scenes import parse_bands
from dinov3seg_jax.data.stretch import parse_stretch
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.pictures.listing import STANDARD_INPUT, standard_input
from dinov3seg_jax.pictures.places import refuse_place
from dinov3seg_jax.places import check_writable
from dinov3seg_jax.processes import add_process_arguments, agree, are_named, check_once, joined
from dinov3seg_jax.visualize import Drawing

DESCRIPTION = "segment pictures into classes you name"
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
    add_process_arguments(parser)
    add_cluster_arguments(parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Segment a picture, or many.

    Of many, a picture that cannot be read is reported, and the others are segmented; and what an earlier run with
    the same question has done is passed over (see `pictures.finished`).

    Raises:
        UserError: no picture can be segmented with these arguments.
    """
    check_cluster_arguments(options)
    if are_named(options) and STANDARD_INPUT in options.image:
        raise UserError("--image is -, and standard input is one process's own; name a file that all processes see")
    request = check_request(options, overrides)
    if options.cluster is not None:
        return segment_on_cluster(options, request)
    with standard_input(options.image) as named:
        refuse_place(named, options.out)
        check_writable(options.out)
        return _segment(options, request, named)


def _segment(options: argparse.Namespace, request: Request, named: Sequence[Path]) -> int:
    job = PictureJob.of(options, request, named)
    videos = Videos(job.clips, job.request.question(), options, job.outputs.drawing or Drawing())
    failed = job.unnameable
    if not job.wanted and not videos.left and not are_named(options):
        failed += draw_again(job.out, job.skipped, job.view, job.outputs)
        job.finish()
        job.tell_of_others()
        return 2 if failed or videos.failed else 0

    gc.set_threshold(OBJECTS)
    import jax

    from dinov3seg_jax.pictures.batches import segment_pictures
    from dinov3seg_jax.pictures.huge import auto_memory
    from dinov3seg_jax.pictures.shares import begin_for_all, fingerprint, is_last, own_share

    def start() -> None:
        nonlocal failed
        failed += draw_again(job.out, job.skipped, job.view, job.outputs)
        if job.pictures or job.of_folder:
            begin_for_all(job.out, job.question if job.of_folder else None, job.wanted, job.outputs, job.request.asked)

    with joined(options):
        devices = jax.local_devices()
        model, asked = load_model(job.request, devices if len(devices) > 1 else ())
        agree(fingerprint(job.question, job.pictures, job.wanted))
        check_once(start)
        process, processes = jax.process_index(), jax.process_count()
    batch_size = min(options.batch, max(len(job.pictures), 1))
    own = own_share(job.pictures, job.wanted, batch_size, process, processes)
    videos.left = videos.left[process::processes]
    if processes > 1:
        print(f"process {process} of {processes} does {len(own)} of {len(job.wanted)} pictures", flush=True)
    memory = options.memory or auto_memory()
    outcomes = segment_pictures(model, asked, job.pictures, set(own), batch_size, memory, job.view, job.outputs)
    tally = follow(outcomes, len(own), job.outputs, job.out, job.of_folder)
    failed += tally.failed
    if job.of_folder and job.pictures:
        if is_last(job.out, process, processes):
            job.finish()
        tally._replace(failed=job.unnameable + tally.failed).tell(len(job.pictures), job.out)
    videos.segment(model, asked, describe)
    job.tell_of_others()
    return 2 if failed or videos.failed else 0


def memory_size(text: str) -> int | None:
    """Bytes; None for "auto".

    Raises:
        UserError: it is neither, or too small to be meant.
    """
    return None if text == "auto" else amount_of_memory(text, ", or auto")


COMMAND = Command("predict", DESCRIPTION, add_arguments, run)
main = COMMAND.main
