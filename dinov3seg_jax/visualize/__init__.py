"""Pictures of a segmentation: colours, overlay, legend, names in regions, and two results side by side."""

from dinov3seg_jax.visualize.comparison import compare
from dinov3seg_jax.visualize.distinct import COLORBLIND_ENDS, MAX_COLORS, palette
from dinov3seg_jax.visualize.drawing import Drawing, draw
from dinov3seg_jax.visualize.legends import legend, side_by_side, with_legend
from dinov3seg_jax.visualize.names_in_regions import write_names
from dinov3seg_jax.visualize.palettes import PALETTES, check_palette, class_colors
from dinov3seg_jax.visualize.tint import CONTOURS, UNLABELLED, Contours, encode, overlay

__all__ = [
    "COLORBLIND_ENDS",
    "CONTOURS",
    "MAX_COLORS",
    "PALETTES",
    "UNLABELLED",
    "Contours",
    "Drawing",
    "check_palette",
    "class_colors",
    "compare",
    "draw",
    "encode",
    "legend",
    "overlay",
    "palette",
    "side_by_side",
    "with_legend",
    "write_names",
]
