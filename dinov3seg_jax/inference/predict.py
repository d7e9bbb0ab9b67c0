"""The command `predict.py`: pictures in, overlays, label images and a summary of each out."""

import argparse
import collections
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dinov3seg_jax import weights
from dinov3seg_jax.config import Config
from dinov3seg_jax.data.images import list_images
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference import segmenter, zero_shot
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.prompts import check_names, load_templates, parse_names
from dinov3seg_jax.text.tokenizer import Tokenizer

OVERRIDE = "--config."
CLASSES_SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Segment a picture, or every picture in a folder.

    Whatever can be checked is checked before the weights are read. In a folder a picture that cannot be read is
    reported, and the others are segmented.

    Args:
        arguments: of the command line; those of this process if None.

    Returns:
        The exit status: 0, or 2 if a picture could not be segmented.

    Raises:
        UserError: no picture can be segmented with these arguments.
    """
    options, overrides = _parse(arguments)
    names = parse_names(options.classes)
    untrained = options.zero_shot or weights.is_converted(options.checkpoint)
    config = segmenter.override_inference(Config(), overrides, zero_shot.SECTION if untrained else "inference")
    templates = load_templates(config.zero_shot.templates) if untrained else config.inference.templates
    check_names(names, Tokenizer(), templates)
    paths = _list_pictures(options.image, options.out)
    model = (zero_shot if untrained else segmenter).load(options.checkpoint, overrides)
    names = model.check_names(names)
    if untrained:
        print(zero_shot.describe_zero_shot(model.config.zero_shot), flush=True)

    failed = 0
    for path, target in zip(paths, output_places(options.image, paths, options.out), strict=True):
        started = time.perf_counter()
        try:
            result = model.segment(path, names)
            overlay, *_ = result.save(target.parent, target.name, file=path.name)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        seconds = time.perf_counter() - started
        print(f"{path}: {describe(result)} ({seconds:.1f} s) -> {overlay}", flush=True)
    if failed and len(paths) > 1:
        print(f"error: {failed} of {len(paths)} pictures could not be segmented; see above", file=sys.stderr)
    return 2 if failed else 0


def describe(result: Segmentation) -> str:
    """Size and the largest classes, for one line of output."""
    height, width = result.labels.shape
    areas = result.areas()
    shown = [f"{name} {share:.1%}" for name, share in list(areas.items())[:CLASSES_SHOWN]]
    more = [f"{len(areas) - CLASSES_SHOWN} more"] if len(areas) > CLASSES_SHOWN else []
    return f"{width} x {height}, {', '.join(shown + more)}"


def output_places(source: Path, paths: Sequence[Path], out: Path) -> list[Path]:
    """Folder and stem of each picture's output: its place below `source`, and its suffix where stems are not unique."""
    root = source if source.is_dir() else source.parent
    stems = collections.Counter(path.with_suffix("") for path in paths)
    return [
        out / path.relative_to(root).with_name(path.stem if stems[path.with_suffix("")] == 1 else _with_suffix(path))
        for path in paths
    ]


def _with_suffix(path: Path) -> str:
    return path.name.replace(".", "_")


def _list_pictures(source: Path, out: Path) -> list[Path]:
    paths = list_images(source)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but the results need a folder; choose another --out")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in the folder of the pictures, {source}; choose another --out")
    return paths


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Segment pictures into the classes you name.",
        epilog=f"{OVERRIDE}inference.OPTION=VALUE changes an option of the inference, "
        f"as in {OVERRIDE}inference.image_size=320; with --zero_shot it is {OVERRIDE}zero_shot.OPTION=VALUE.",
    )
    parser.add_argument("--image", type=Path, required=True, metavar="PATH", help="a picture, or a folder of pictures")
    parser.add_argument(
        "--classes", required=True, metavar="NAMES", help='"red circle, grass", or @FILE with one name per line'
    )
    parser.add_argument(
        "--checkpoint",
        "--weights",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of a run, or of converted dinov3.txt weights",
    )
    parser.add_argument(
        "--zero_shot", action="store_true", help="dinov3.txt alone, untrained; so for converted weights in any case"
    )
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="FOLDER", help="default: %(default)s")
    options, rest = parser.parse_known_args(arguments)
    for argument in rest:
        if not argument.startswith(OVERRIDE):
            parser.error(f"unknown argument {argument}; see --help")
    return options, [argument.removeprefix(OVERRIDE) for argument in rest]
