"""Results that were written before, read again: what of them is drawn."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from dinov3seg_jax.data.images import read_pixels
from dinov3seg_jax.data.scenes import AS_IT_IS, View, import_rasterio
from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.pictures.huge import Overview
from dinov3seg_jax.pictures.rasters import open_raster
from dinov3seg_jax.places import local_copy
from dinov3seg_jax.visualize import UNLABELLED, Drawing, class_colors

LabelMap = tuple[np.ndarray, np.ndarray | None]  # its values, and the colours if it has some


class Earlier(NamedTuple):
    """A picture with its labels; of one that went tile by tile, at the size of its overlay."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: Int[np.ndarray, "h w"]
    names: tuple[str, ...]
    colors: UInt8[np.ndarray, "t 3"]
    counts: Int[np.ndarray, " t"]  # pixels of each class, of the whole picture
    nodata: int  # pixels
    drawing: Drawing


def read_earlier(picture: Picture, view: View = AS_IT_IS, drawing: Drawing | None = None) -> Earlier:
    """What was written of a picture.

    Args:
        picture: the picture, and where its results are.
        view: which bands are shown, and how.
        drawing: how it is to be drawn.

    Raises:
        UserError: the picture or its results cannot be read, or they are of another picture.
    """
    summary = read_summary(picture.summary)
    if "labels" not in summary:
        raise UserError(f"{picture.summary} has no label map beside it; label the picture again, with that format, too")
    labels_file = picture.target.with_name(str(summary["labels"]))
    names = tuple(map(str, summary["names"]))
    size = int(summary["height"]), int(summary["width"])
    overview = Overview(*size) if "tiles" in summary else None
    labels, colors = _labels(labels_file, names, size, overview)
    return Earlier(
        _image(picture.path, view, size, overview),
        labels,
        names,
        colors,
        np.array([row["pixels"] for row in summary["classes"]]),
        int(summary["nodata_pixels"]),
        drawing or Drawing(),
    )


def read_summary(path: Path) -> dict[str, Any]:
    """What was written of a picture's labels.

    Raises:
        UserError: it cannot be read, or is none of this program's.
    """
    try:
        found = json.loads(path.read_bytes())
        if {"names", "classes", "height", "width", "nodata_pixels"} <= found.keys():
            return found
    except FileNotFoundError:
        raise UserError(f"there is no {path}; label the picture first, with: dinov3seg predict") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(reason(error), 80)}); label the picture again") from error
    raise UserError(f"{path} was not written by this program, or by an old version; label the picture again")


def _labels(
    path: Path, names: tuple[str, ...], size: tuple[int, int], overview: Overview | None
) -> tuple[Int[np.ndarray, "h w"], UInt8[np.ndarray, "t 3"]]:
    read = _read_raster if path.suffix == ".tif" else _read_png
    try:
        values, colors = read(local_copy(path), size, overview)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({one_line(reason(error), 80)}); label the picture again") from error
    labels = np.where(values < len(names), values.astype(np.int32), UNLABELLED)
    return labels, class_colors(names) if colors is None else colors[: len(names)]


def _read_png(path: Path, size: tuple[int, int], overview: Overview | None) -> LabelMap:
    with Image.open(path) as image:
        colors = np.array(image.getpalette(), np.uint8).reshape(-1, 3) if image.mode == "P" else None
        values = np.asarray(image)
    _check_size(path, values.shape, size)
    return values if overview is None else overview.sample(values.__getitem__), colors


def _read_raster(path: Path, size: tuple[int, int], overview: Overview | None) -> LabelMap:
    rasterio = import_rasterio()
    if rasterio is None:
        raise UserError(f"{path} is read with rasterio; install it with: pip install rasterio")
    try:
        with rasterio.open(path) as file:
            _check_size(path, file.shape, size)
            colors = None
            with contextlib.suppress(ValueError):  # there are none
                colors = np.array([color[:3] for color in file.colormap(1).values()], np.uint8)
            if overview is None:
                return file.read(1), colors
            return overview.sample(lambda row: file.read(1, window=((row, row + 1), (0, size[1])))[0]), colors
    except rasterio.errors.RasterioError as error:
        raise OSError(str(error)) from error


def _check_size(path: Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if found != size:
        raise UserError(f"{path} is not as large as the summary beside it says; label the picture again")


def _image(path: Path, view: View, size: tuple[int, int], overview: Overview | None) -> UInt8[np.ndarray, "h w 3"]:
    if overview is None:
        image = read_pixels(path, view).rgb
        found = image.shape[:2]
    else:
        with contextlib.closing(open_raster(path, view)) as raster:
            found = raster.height, raster.width
            image = overview.picture(raster) if found == size else np.zeros((1, 1, 3), np.uint8)
    if found != size:
        (height, width), (was_high, was_wide) = found, size
        raise UserError(
            f"{path} has {width} x {height} pixels, and its results {was_wide} x {was_high}; label it again"
        )
    return image
