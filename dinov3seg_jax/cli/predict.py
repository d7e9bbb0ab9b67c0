"""The command `predict.py`: pictures in, overlays, label images and a summary of each out.

JAX is loaded when everything that can be checked without it is checked, since that takes seconds.
"""

import argparse
import collections
import dataclasses
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
from tqdm import tqdm

from dinov3seg_jax import __version__
from dinov3seg_jax.config import Config, override_inference, split_overrides
from dinov3seg_jax.data.images import list_images
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.pictures.finished import Picture, begin, to_do
from dinov3seg_jax.store.folder import fingerprint, is_converted, read_config
from dinov3seg_jax.text.prompts import check_names, load_templates, parse_names
from dinov3seg_jax.text.tokenizer import Tokenizer

CLASSES_SHOWN = 5
SMALLEST_MEMORY = 10**6  # bytes; less is an amount whose unit was forgotten
OBJECTS = 100_000  # that are made between two garbage collections; Python's own 700 take an eighth of a start


class Request(NamedTuple):
    """What both commands ask of a model, checked as far as that goes without loading it."""

    checkpoint: Path
    untrained: bool  # dinov3.txt alone
    overrides: list[str]
    names: tuple[str, ...]
    config: Config  # of the run, or the default one


def main(arguments: Sequence[str] | None = None, prog: str = "predict.py") -> int:
    """Segment a picture, or every picture in a folder.

    In a folder a picture that cannot be read is reported, and the others are segmented; and what an earlier run with
    the same question has done is passed over (see `finished`).

    Args:
        arguments: of the command line; those of this process if None.
        prog: what the command is called.

    Returns:
        The exit status: 0, or 2 if a picture could not be segmented.

    Raises:
        UserError: no picture can be segmented with these arguments.
    """
    options, overrides = _parse(arguments, prog)
    request = check_request(options, overrides)
    memory = _memory(options.memory)
    paths = _list_pictures(options.image, options.out)
    request = with_own_config(request)
    pictures = list(map(Picture, paths, output_places(options.image, paths, options.out)))
    of_folder = options.image.is_dir()
    question = _question(request, options.image)
    wanted = to_do(options.out, question, pictures, options.overwrite)
    skipped = len(pictures) - len(wanted)
    if skipped:
        print(f"{skipped} of {len(pictures)} pictures are done already", flush=True)
    unnameable = [picture for picture in wanted if picture.has_long_name()]
    for picture in unnameable:
        print(f"error: {picture.path} has a name that is too long for its results; shorten it", file=sys.stderr)
        wanted.remove(picture)
    if not wanted:
        return 2 if unnameable else 0

    gc.set_threshold(OBJECTS)
    from dinov3seg_jax.pictures.batches import Outcome, segment_pictures
    from dinov3seg_jax.pictures.huge import auto_memory

    model, names = load_model(request)
    begin(options.out, question if of_folder else None, wanted)

    def report(outcome: Outcome) -> None:
        with tqdm.external_write_mode():  # above the bar
            if outcome.summary is None:
                print(f"error: {outcome.error}", file=sys.stderr)
            else:
                overlay = outcome.picture.target.with_name(f"{outcome.picture.target.name}_overlay.png")
                print(f"{outcome.picture.path}: {describe(outcome.summary)} -> {overlay}", flush=True)

    batch_size = min(options.batch, len(pictures))
    outcomes = segment_pictures(model, names, pictures, set(wanted), batch_size, memory or auto_memory())
    done, started = 0, time.perf_counter()
    hidden = None if of_folder else True  # None: where nobody watches
    for outcome in tqdm(outcomes, total=len(wanted), unit="image", dynamic_ncols=True, disable=hidden):
        report(outcome)
        done += outcome.summary is not None
    seconds, failed = time.perf_counter() - started, len(unnameable) + len(wanted) - done
    if of_folder:
        print(f"{done} pictures in {seconds:.1f} s, {done / seconds:.2f} images/s", flush=True)
        if failed:
            print(f"error: {failed} of {len(pictures)} pictures could not be segmented; see above", file=sys.stderr)
    return 2 if failed else 0


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What both commands need to know of the model and the names."""
    parser.add_argument(
        "--checkpoint",
        "--weights",
        type=given_path,
        required=True,
        metavar="FOLDER",
        help="of a run, or of converted dinov3.txt weights",
    )
    parser.add_argument(
        "--zero_shot", action="store_true", help="dinov3.txt alone, untrained; so for converted weights in any case"
    )
    parser.add_argument(
        "--batch", type=count, default=1, metavar="N", help="pictures that run together; default: %(default)s"
    )


def check_request(options: argparse.Namespace, overrides: Sequence[str]) -> Request:
    """Check names and options.

    Raises:
        UserError: they cannot be used, whatever the model.
    """
    names = parse_names(options.classes)
    untrained = options.zero_shot or is_converted(options.checkpoint)
    config = override_inference(Config(), overrides, "zero_shot" if untrained else "inference")
    templates = load_templates(config.zero_shot.templates) if untrained else config.inference.templates
    check_names(names, Tokenizer(), templates)
    return Request(options.checkpoint, untrained, list(overrides), names, config)


def with_own_config(request: Request) -> Request:
    """The request with the model's own config, where it has one.

    Raises:
        UserError: there is no model, or the options do not fit its others.
    """
    if is_converted(request.checkpoint):
        return request
    section = "zero_shot" if request.untrained else "inference"
    return request._replace(config=override_inference(read_config(request.checkpoint), request.overrides, section))


def load_model(request: Request) -> tuple[Any, tuple[str, ...]]:
    """The model, and the names as it takes them; programs are kept on disk from here on.

    Raises:
        UserError: the model cannot be loaded, or does not take these names.
    """
    from dinov3seg_jax.cache.programs import keep_programs
    from dinov3seg_jax.inference import segmenter

    keep_programs()
    if not request.untrained:
        model = segmenter.load(request.checkpoint, request.overrides)
        return model, model.check_names(request.names)
    from dinov3seg_jax.inference import zero_shot  # here, because importing Flax takes a while

    untrained = zero_shot.load(request.checkpoint, request.overrides)
    names = untrained.check_names(request.names)
    print(zero_shot.describe_zero_shot(untrained.config.zero_shot), flush=True)
    return untrained, names


def describe(summary: dict[str, Any]) -> str:
    """Size and the largest classes, for one line of output; see `Segmentation.summary`."""
    found = sorted((row for row in summary["classes"] if row["pixels"]), key=lambda row: -row["pixels"])
    shown = [f"{row['name']} {row['fraction']:.1%}" for row in found[:CLASSES_SHOWN]]
    more = [f"{len(found) - CLASSES_SHOWN} more"] if len(found) > CLASSES_SHOWN else []
    return f"{summary['width']} x {summary['height']}, {', '.join(shown + more)}"


def output_places(source: Path, paths: Sequence[Path], out: Path) -> list[Path]:
    """Folder and stem of each picture's output: its place below `source`, and its suffix where stems are not unique.

    No two are the same: whoever shares a name takes its next one, and at last its own with the dot, as files do.
    """
    root = source if source.is_dir() else source.parent
    names = {path: [path.stem, path.name.replace(".", "_"), path.name] for path in paths}
    while True:
        places = {path: path.with_name(choices[0]) for path, choices in names.items()}
        users = collections.Counter(places.values())
        sharing = [path for path, place in places.items() if users[place] > 1 and len(names[path]) > 1]
        if not sharing:
            return [out / place.relative_to(root) for place in places.values()]
        for path in sharing:
            del names[path][0]


def _question(request: Request, source: Path) -> dict[str, Any]:
    options = request.config.zero_shot if request.untrained else request.config.inference
    return {
        "pictures": str(source.resolve()),
        "weights": fingerprint(request.checkpoint),
        "names": list(request.names),
        "options": {"zero_shot": request.untrained} | dataclasses.asdict(options),
        "versions of this program": __version__,
    }


def _list_pictures(source: Path, out: Path) -> list[Path]:
    paths = list_images(source)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but the results need a folder; choose another --out")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in the folder of the pictures, {source}; choose another --out")
    return paths


def _memory(text: str) -> int | None:
    """Bytes; None for "auto".

    Raises:
        UserError: it is neither, or too small to be meant.
    """
    if text == "auto":
        return None
    try:
        size = int(pydantic.TypeAdapter(pydantic.ByteSize).validate_python(text))
    except pydantic.ValidationError:
        size = 0
    if size <= 0:
        raise UserError(f"--memory is '{text}', which is no amount of memory; write it as in 4GB or 512MB, or auto")
    if size < SMALLEST_MEMORY:
        raise UserError(f"--memory is '{text}', which is {size:,} bytes, less than 1 MB; write the unit, as in 4GB")
    return size


def given_path(text: str) -> Path:
    """A path on a command line."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder")  # `Path` takes it for "."
    return Path(text)


def count(text: str) -> int:
    """A number of things on a command line."""
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from error
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _parse(arguments: Sequence[str] | None, prog: str) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Segment pictures into the classes you name.",
        epilog="--config.inference.OPTION=VALUE changes an option of the inference, as in "
        "--config.inference.image_size=320; with --zero_shot it is --config.zero_shot.OPTION=VALUE.",
    )
    parser.add_argument(
        "--image", type=given_path, required=True, metavar="PATH", help="a picture, or a folder of pictures"
    )
    parser.add_argument(
        "--classes", required=True, metavar="NAMES", help='"red circle, grass", or @FILE with one name per line'
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--out", type=given_path, default=Path("predictions"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--memory",
        default="auto",
        metavar="SIZE",
        help="as in 4GB: pictures that need more are segmented tile by tile; auto: half of what is free",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="do every picture of a folder, whatever is in the folder of results"
    )
    overrides, rest = split_overrides(sys.argv[1:] if arguments is None else arguments)
    return parser.parse_args(rest), overrides
