"""What predict writes: the options for formats."""

import argparse
from collections.abc import Sequence

from dinov3seg_jax.formats.outputs import DEFAULT, Outputs
from dinov3seg_jax.formats.table import FORMATS, asked


def add_format_arguments(group: argparse._ArgumentGroup) -> None:
    """The options that say which files are written, and what goes into them."""
    group.add_argument(
        "--format",
        "--formats",
        dest="formats",
        nargs="+",
        default=[",".join(DEFAULT)],
        metavar="NAME",
        help=f"several, as in overlay,coco: {', '.join(FORMATS)} (docs/formats.md); default: {','.join(DEFAULT)}",
    )
    group.add_argument(
        "--min_area",
        default="0",
        metavar="N",
        help='pixels that a region has at least, or by class, as in "dog=50,sky=500"; for formats with regions',
    )
    group.add_argument(
        "--simplify",
        default="0",
        metavar="N",
        help="how far the borders of polygons may move, in pixels; default: %(default)s",
    )


def outputs_of(options: argparse.Namespace, of_folder: bool, names: Sequence[str]) -> Outputs:
    """What the options ask for.

    Raises:
        UserError: a value cannot be used, not even with these names, or a library is missing.
    """
    folder = options.out if of_folder else None
    outputs = asked(",".join(options.formats), options.min_area, options.simplify, folder)
    outputs.least_areas(names)
    return outputs
