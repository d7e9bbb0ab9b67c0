"""`dinov3seg predict --cluster`: the pictures of a command line on the machines of a Ray cluster."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3seg_jax.cli.drawing import draw_again, drawing_of
from dinov3seg_jax.cli.picture_job import PictureJob, follow, placed, question_of
from dinov3seg_jax.cli.request import Request, with_own_config
from dinov3seg_jax.cli.results import outputs_of
from dinov3seg_jax.data.clips import is_clip
from dinov3seg_jax.data.scenes import View
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.formats.outputs import DEFAULT, Outputs
from dinov3seg_jax.pictures.finished import Picture, begin, clear, to_do
from dinov3seg_jax.pictures.listing import STANDARD_INPUT, find_pictures, named_files, readable_suffixes
from dinov3seg_jax.pictures.places import refuse_place, written_to
from dinov3seg_jax.places import check_writable, is_remote
from dinov3seg_jax.processes import are_named
from dinov3seg_jax.text.prompts import understood

if TYPE_CHECKING:
    from dinov3seg_jax.cluster.units import Unit
    from dinov3seg_jax.cluster.work import Asked, Piece
    from dinov3seg_jax.pictures.batches import Outcome

Cluster = tuple[Any, dict[str, float]]  # Ray, connected, and what a worker takes of a machine
FILES, PARQUET = "files", "parquet"
PROBE = ".predictions.probe"  # a file that every machine has to see before the work starts
PICTURES_IN_A_PIECE, PICTURES_IN_A_TABLE = 32, 256  # or a few more, as batches are not cut
UNITS = ("CPU", "GPU", "TPU")


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a cluster."""
    group = parser.add_argument_group("a Ray cluster (extra 'cluster'; docs/clusters.md)")
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="local, auto, HOST:PORT or ray://HOST:PORT; --image may then name tar and Parquet files of pictures",
    )
    group.add_argument(
        "--worker",
        type=worker_size,
        default={},
        metavar="WHAT",
        help="what each process takes, as in gpu=1, tpu=4 or cpu=8; default: an accelerator, or a machine's processors",
    )
    group.add_argument(
        "--results",
        choices=(FILES, PARQUET),
        default=FILES,
        help="files of each picture (--format), or rows of Parquet files; default: %(default)s",
    )


def worker_size(text: str) -> dict[str, float]:
    """What a worker takes, by Ray's words.

    Raises:
        ArgumentTypeError: it is no such thing.
    """
    kind, _, number = text.upper().partition("=")
    with contextlib.suppress(ValueError):
        if kind in UNITS and (amount := float(number)) > 0 and (amount < 1 or amount.is_integer()):
            return {kind: amount}
    raise argparse.ArgumentTypeError(f"'{text}' is no size of a worker; write it as in gpu=1, tpu=4 or cpu=8")


def check_cluster_arguments(options: argparse.Namespace) -> None:
    """Check what needs no look at the model or at the pictures.

    Raises:
        UserError: the options contradict each other, or Ray is not installed.
    """
    if options.cluster is None:
        if options.worker or options.results != FILES:
            raise UserError("--worker and --results go with --cluster; add that, or leave them out")
        return
    if are_named(options):
        raise UserError("--cluster starts its own processes; leave out --distributed, or --coordinator and its numbers")
    if STANDARD_INPUT in options.image:
        raise UserError("--image is -, which the machines of a cluster do not see; name files")
    if options.results == PARQUET and options.formats != [",".join(DEFAULT)]:
        raise UserError("--results parquet has columns of its own; leave --format out, or write --results files")
    from dinov3seg_jax.cluster.connecting import import_ray

    import_ray()


def segment_on_cluster(options: argparse.Namespace, request: Request) -> int:
    """Segment what a command line names; the status as of `predict.run`.

    Raises:
        UserError: there are no pictures, the folder of results is another question's, or the cluster cannot be used.
    """
    options.image = [_absolute(path) for path in options.image]
    options.out = _absolute(options.out)
    refuse_place(options.image, options.out)
    check_writable(options.out)
    if (shards := _shards(options.image, options.out)) or options.results == PARQUET:
        return _segment_units(options, request, shards)
    return _segment_files(options, request)


def _segment_files(options: argparse.Namespace, request: Request) -> int:
    """Pictures that are files, to results that are files: what is done is told as on one machine."""
    from dinov3seg_jax.cluster.work import Listed
    from dinov3seg_jax.pictures.batches import several_neighbours
    from dinov3seg_jax.pictures.shares import begin_for_all

    job = PictureJob.of(options, request, options.image)
    _without_videos(job.clips)
    failed = job.unnameable
    if job.wanted:
        left = set(job.wanted)
        batch_size = min(options.batch, len(job.pictures))
        cut = several_neighbours(job.pictures, batch_size, PICTURES_IN_A_PIECE)
        pieces = [Listed(tuple(part), wanted) for part in cut if (wanted := tuple(one for one in part if one in left))]
        asked = _asked(options, job.request, job.view, job.outputs, batch_size)
        with _cluster(options, job.request, job.wanted[0].path) as cluster:
            failed += draw_again(job.out, job.skipped, job.view, job.outputs)
            begin_for_all(job.out, job.question, job.wanted, job.outputs, job.request.asked)
            tally = follow(_run(cluster, pieces, asked), len(job.wanted), job.outputs, job.out)
        clear(job.out, job.wanted, job.outputs)  # of machines that died
        failed += tally.failed
        job.finish()
        tally._replace(failed=job.unnameable + tally.failed).tell(len(job.pictures), job.out)
    else:
        failed += draw_again(job.out, job.skipped, job.view, job.outputs)
        job.finish()
    job.tell_of_others()
    return 2 if failed else 0


def _segment_units(options: argparse.Namespace, request: Request, shards: Sequence[Picture]) -> int:
    """Pictures of shards, or to tables."""
    from dinov3seg_jax.cluster.units import IN_A_TABLE, Unit, clear_units
    from dinov3seg_jax.pictures.batches import several_neighbours

    table = options.results == PARQUET
    view = View(options.bands, options.stretch)
    request = with_own_config(request)
    if shards:
        units = [Unit(shard.target, table, shard=shard) for shard in shards]
    else:
        listing = find_pictures(options.image)
        pictures = _without_videos(placed(listing.roots, options.out))
        cut = several_neighbours(pictures, min(options.batch, len(pictures)), PICTURES_IN_A_TABLE)
        units = [Unit(options.out / f"part-{number:06}", table, tuple(part)) for number, part in enumerate(cut)]
    first = (shards or pictures)[0].path
    outputs = IN_A_TABLE if table else outputs_of(options, False, request.asked.names)
    outputs = outputs._replace(drawing=drawing_of(options))
    question = question_of(options.image, request, view, outputs) | {"--results": options.results}
    to_do(options.out, question, [], options.overwrite, outputs)
    left = units if options.overwrite else [unit for unit in units if not unit.is_done()]
    if len(left) < len(units):
        print(f"{len(units) - len(left)} of {len(units)} files of pictures are done already", flush=True)
    if not left:
        return 0
    batch_size = options.batch if shards else min(options.batch, len(pictures))
    asked = _asked(options, request, view, outputs, batch_size)
    with _cluster(options, request, first) as cluster:
        begin(options.out, question, [], outputs)
        _forget(options.out, units, left)
        tally = follow(_run(cluster, left, asked), None, outputs, options.out)
    clear_units(left)
    tally.tell(tally.done + tally.failed, options.out)
    return 2 if tally.failed else 0


def _asked(options: argparse.Namespace, request: Request, view: View, outputs: Outputs, batch_size: int) -> "Asked":
    from dinov3seg_jax.cluster.work import Asked

    print(understood(request.asked), flush=True)
    return Asked(
        _absolute(request.folder.path),
        options.step,
        tuple(request.overrides),
        request.way == "zero_shot",
        request.asked,
        batch_size,
        options.memory,
        view,
        outputs,
    )


@contextlib.contextmanager
def _cluster(options: argparse.Namespace, request: Request, picture: Path) -> "Iterator[Cluster]":
    """A cluster whose machines all see what they need."""
    from dinov3seg_jax.cluster.connecting import check_nodes, connected, in_words, refuse_busy, workers_of

    probe, weights = options.out / PROBE, str(_absolute(request.folder.path))
    with written_to(options.out):  # before Ray starts, which takes seconds
        options.out.mkdir(parents=True, exist_ok=True)
        write_whole(probe, b"")
    with contextlib.ExitStack() as stack:
        try:
            ray = stack.enter_context(connected(options.cluster))
            workers = workers_of(ray, options.worker)
            refuse_busy(ray, workers)
            check_nodes(ray, weights, options.step, request.folder.fingerprint, str(picture), str(probe))
        finally:
            probe.unlink(missing_ok=True)
        number = f"{workers.number} worker{'s' if workers.number > 1 else ''}"
        print(f"{number} on {options.cluster}, with {in_words(workers.each)} each", flush=True)
        yield ray, workers.each


def _run(cluster: "Cluster", pieces: "Sequence[Piece]", asked: "Asked") -> "Iterator[Outcome]":
    from dinov3seg_jax.cluster.job import run_pieces

    return run_pieces(*cluster, pieces, asked)


def _without_videos(pictures: Sequence[Picture]) -> Sequence[Picture]:
    """The pictures, if none is a video.

    Raises:
        UserError: one is.
    """
    if (clip := next((one.path for one in pictures if is_clip(one.path)), None)) is not None:
        raise UserError(
            f"{clip} is a video, and a cluster segments pictures alone; name the pictures without it, and segment it "
            "without --cluster"
        )
    return pictures


def _shards(named: Sequence[Path], out: Path) -> list[Picture]:
    """The files of many pictures that were named, if there are some: by themselves, in folders, or by patterns.

    Raises:
        UserError: pictures that are files are among them, or there is no such file.
    """
    from dinov3seg_jax.cluster.shards import is_shard

    roots: dict[Path, Path] = {}
    others: list[Path] = []  # one of each path at most
    pictures = readable_suffixes()
    for path in named:
        files = {file: root for root, file in named_files(path)}
        found = sorted(filter(is_shard, files))
        roots |= {file: files[file] for file in found}
        other = next((file for file in files if file.suffix.lower() in pictures), None if found else path)
        others += [] if other is None else [other]
    if roots and others:
        raise UserError(
            f"{others[0]} is no file of many pictures, as {next(iter(roots))} is; give one kind at a time, as with "
            "--image 'FOLDER/*.tar'"
        )
    return placed(roots, out) if roots else []


def _forget(out: Path, units: "Sequence[Unit]", left: "Sequence[Unit]") -> None:
    """Delete what says that these are done, and tables of a listing that had more pictures."""
    stale = {unit.mark for unit in left}
    stale |= {path for path in out.glob("part-??????.parquet")} - {unit.mark for unit in units}
    for path in stale:
        path.unlink(missing_ok=True)


def _absolute(path: Path) -> Path:
    """A path that other machines understand, if they have it."""
    return path if is_remote(path) else path.absolute()
