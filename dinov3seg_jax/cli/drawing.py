"""The options that say what an overlay looks like."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dinov3seg_jax.data.scenes import View
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.pictures.finished import Picture, is_drawn_so
from dinov3seg_jax.visualize import CONTOURS, Drawing


def add_drawing_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options of every command that draws; returns their group."""
    usual = Drawing()
    group = parser.add_argument_group("overlay (docs/overlays.md)")
    group.add_argument(
        "--opacity",
        type=float,
        default=usual.opacity,
        metavar="X",
        help="of the tint: 0 shows the picture alone, 1 the colours alone; default: %(default)s",
    )
    group.add_argument(
        "--contours",
        choices=CONTOURS,
        default=usual.contours,
        help="lines around regions; 'only' draws no tint; default: %(default)s",
    )
    group.add_argument("--labels_in_regions", action="store_true", help="write the names into large regions")
    group.add_argument("--no_legend", action="store_true", help="leave the legend out")
    return group


def drawing_of(options: argparse.Namespace) -> Drawing:
    """What was asked for.

    Raises:
        UserError: the opacity is none.
    """
    try:
        return Drawing(options.opacity, options.contours, options.labels_in_regions, not options.no_legend)
    except UserError as error:  # which begins with the option's word
        raise UserError(f"--{error}") from None


def draw_again(out: Path, done: Sequence[Picture], view: View, outputs: Outputs) -> int:
    """Draw what is done as it is asked now, if it looks otherwise; returns how many pictures could not be drawn."""
    if not done or "overlay" not in outputs.formats or is_drawn_so(out, outputs):
        return 0
    from dinov3seg_jax.pictures.redraw import redraw  # loads JAX

    again = redraw(out, done, view, outputs)
    errors = [error for error in tqdm(again, total=len(done), unit="image", dynamic_ncols=True, disable=None) if error]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    print(f"{len(done) - len(errors)} of them are drawn again, from their labels", flush=True)
    return len(errors)
