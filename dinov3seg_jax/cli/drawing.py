"""The options that say what an overlay looks like."""

import argparse

from dinov3seg_jax.errors import UserError
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
    except UserError as error:
        raise UserError(f"--{error}") from None
