"""`dinov3seg compare`: two results of the same pictures side by side, and where they differ."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dinov3seg_jax.cli.drawing import add_drawing_arguments, drawing_of
from dinov3seg_jax.cli.parsing import Command, given_path
from dinov3seg_jax.data.clips import is_clip
from dinov3seg_jax.data.scenes import View, parse_bands
from dinov3seg_jax.data.stretch import parse_stretch
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.pictures.listing import find_pictures
from dinov3seg_jax.pictures.places import output_places, refuse_place, written_to
from dinov3seg_jax.places import check_writable
from dinov3seg_jax.visualize import Drawing, compare, encode

DESCRIPTION = "show two results of the same pictures side by side, and where they differ"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "results",
        type=given_path,
        nargs=2,
        metavar="FOLDER",
        help="two folders that dinov3seg predict wrote: of two models, or of two lists of names",
    )
    parser.add_argument(
        "--image", type=given_path, nargs="+", action="extend", required=True, metavar="PATH", help="as for predict"
    )
    parser.add_argument(
        "--out", type=given_path, default=Path("comparison"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--titles", nargs=2, metavar="TITLE", help="of the two; default: the folders' names")
    parser.add_argument("--bands", type=parse_bands, default=(), metavar="N,N,N", help="as for predict")
    parser.add_argument("--stretch", type=parse_stretch, metavar="RANGE", help="as for predict")
    add_drawing_arguments(parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Write `NAME_compared.png` for each picture; one that cannot be compared stops none of the others.

    Raises:
        UserError: there is no such picture, or the place of the results cannot be used.
    """
    if overrides:
        raise UserError(f"compare runs no model, so {overrides[0]} says nothing to it; leave it out")
    drawing, view = drawing_of(options), View(options.bands, options.stretch)
    refuse_place(options.image, options.out)
    check_writable(options.out)
    for folder in options.results:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder of results; label the pictures first, with: dinov3seg predict")
    titles = options.titles or [folder.name or str(folder) for folder in options.results]
    titles = titles if titles[0] != titles[1] else [str(folder) for folder in options.results]
    roots = find_pictures(options.image).roots
    first, second, places = (output_places(roots, folder) for folder in (*options.results, options.out))
    failed = 0
    for path, *targets, place in zip(roots, first, second, places, strict=True):
        try:
            written = _compare(path, targets, place, titles, view, drawing)
            print(f"{path} -> {written}", flush=True)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    return 2 if failed else 0


def _compare(
    path: Path, targets: Sequence[Path], place: Path, titles: Sequence[str], view: View, drawing: Drawing
) -> Path:
    from dinov3seg_jax.pictures.earlier import read_earlier  # loads JAX

    if is_clip(path):
        raise UserError(f"{path} is a video, and only pictures are compared; leave it out")
    first, second = (read_earlier(Picture(path, target), view, drawing) for target in targets)
    written = place.with_name(f"{place.name}_compared.png")
    with written_to(written):
        written.parent.mkdir(parents=True, exist_ok=True)
        write_whole(written, encode(Image.fromarray(compare(first, second, titles))))
    return written


COMMAND = Command("compare", DESCRIPTION, add_arguments, run)
main = COMMAND.main
