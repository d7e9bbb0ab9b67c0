"""What the browser draws: the picture and its labels at a size that a screen can show, each value a true one.

Labels and scores are those of single pixels of the picture, none is averaged. They travel as bytes and not as
pictures, since some browsers add noise to the pixels that a page reads.
"""

import base64
import gzip
import io
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from dinov3seg_jax.formats.answer import hex_color
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.class_lists.asked import UNKNOWN, UNKNOWN_COLOR

SIDE = 1600  # of a view in pixels, at most
STEPS = 10_000  # of a score; the browser shows three digits
THRESHOLDS = 100  # of the slider, for which the share of each class is counted over all pixels
ROWS = 256  # of a picture that are counted at once
HEAT_NUMBERS = 100 * 10**6  # of the scores of all classes, for which a picture is made smaller
ROUNDING = 1e-3  # in steps: 0.29 as float32 is a little less than 0.29
QUALITY = 90  # of the JPEG


def view_of_picture(rgb: UInt8[np.ndarray, "h w 3"], side: int = SIDE) -> dict[str, Any]:
    """A picture alone, before anything was asked."""
    small = reduced(rgb, side)
    encoded = io.BytesIO()
    Image.fromarray(small).save(encoded, "JPEG", quality=QUALITY, subsampling=0)
    picture = f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    size = [rgb.shape[1], rgb.shape[0]]
    unknown = {"name": UNKNOWN, "color": hex_color(np.array(UNKNOWN_COLOR))}
    shape = {"width": small.shape[1], "height": small.shape[0]}
    return {"picture": picture, **shape, "size": size, "unknown": unknown, "results": []}


def view_of_result(result: Segmentation, title: str, side: int = SIDE) -> dict[str, Any]:
    """The labels of one list of names.

    Returns:
        "title"; "classes", of which each has "name", "color" as "#rrggbb" and "counts", its pixels in the whole
        picture with a score of at least 0, 0.01, ... 1; and "map", see `packed_map`.
    """
    counts = counts_above(result.labels, result.confidence, len(result.names))
    height, width = result.labels.shape
    shown = np.ix_(*places(height, width, side))
    return {
        "title": title,
        "classes": [
            {"name": name, "color": hex_color(color), "counts": own.tolist()}
            for name, color, own in zip(result.names, result.colors, counts, strict=True)
        ],
        "map": packed_map(result.labels[shown], result.confidence[shown]),
    }


def reduced(rgb: UInt8[np.ndarray, "h w 3"], side: int = SIDE) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A picture at the size of its view."""
    height, width = rgb.shape[:2]
    rows, columns = places(height, width, side)
    if (height, width) == (len(rows), len(columns)):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((len(columns), len(rows)), Image.Resampling.BOX))


def heat_side(classes: int) -> int:
    """The size at which the scores of so many classes are found together."""
    return min(SIDE, math.isqrt(HEAT_NUMBERS // classes))


def heat_of(quantized: Int[np.ndarray, "h w"]) -> dict[str, Any]:
    """The scores of one class everywhere, of `quantize`: "width", "height" and "data", as in `packed_map`."""
    return {"width": quantized.shape[1], "height": quantized.shape[0], "data": _packed(_differences(quantized))}


def places(height: int, width: int, side: int) -> tuple[Int[np.ndarray, " h2"], Int[np.ndarray, " w2"]]:
    """The rows and columns of a picture that stand for it at a reduced size: the middle ones of each cell."""
    scale = min(side / max(height, width), 1)
    sizes = ((length, max(round(length * scale), 1)) for length in (height, width))
    rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for old, new in sizes)
    return rows, columns


def quantize(scores: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Scores in steps of 1 / `STEPS`, rounded down, so that what is below a threshold stays below it."""
    return np.clip(np.floor(scores * np.float32(STEPS) + np.float32(ROUNDING)), 0, STEPS).astype(np.uint16)


def counts_above(
    labels: Int[np.ndarray, "h w"], scores: Float[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "t n"]:
    """Pixels of each class whose score is at least k / `THRESHOLDS`, k = 0, 1, ..., `THRESHOLDS`."""
    columns = THRESHOLDS + 1
    counts = np.zeros(classes * columns, np.int64)
    for top in range(0, len(labels), ROWS):
        own, steps = labels[top : top + ROWS], quantize(scores[top : top + ROWS])
        bins = own.astype(np.int64) * columns + steps // (STEPS // THRESHOLDS)
        counts += np.bincount(bins[own >= 0], minlength=len(counts))
    return counts.reshape(classes, columns)[:, ::-1].cumsum(axis=1)[:, ::-1]


def packed_map(labels: Int[np.ndarray, "h w"], scores: Float[np.ndarray, "h w"]) -> str:
    """Labels and scores, both as 16-bit numbers, little-endian, compressed and in base64.

    -1 becomes 65535. Of the scores, each is stored as the difference from the one to its left, modulo 65536, which
    compresses well.
    """
    return _packed(labels.astype("<u2").tobytes() + _differences(quantize(scores)))


def _differences(quantized: Int[np.ndarray, "h w"]) -> bytes:
    return np.diff(quantized, axis=1, prepend=np.uint16(0)).astype("<u2").tobytes()


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 3)).decode()
