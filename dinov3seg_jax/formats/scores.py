"""Scores of every class in every pixel: arrays of NumPy, or a GeoTIFF with a band for each class."""

import io
from pathlib import Path

import numpy as np

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.formats.outputs import Outputs

KIND = np.float16


def write_scores(answer: Answer, outputs: Outputs, path: Path) -> None:
    """`scores`, float16 [classes, height, width], and `names`, without that of unknown pixels, which has no score.

    A picture with a place on Earth becomes a cloud-optimised GeoTIFF, float32, with the names as descriptions of its
    bands, and NaN where there are no data.

    Raises:
        OSError: the file cannot be written.
        UserError: no scores were kept, or rasterio is not installed.
    """
    if answer.scores is None:
        raise UserError(f"{answer.file} has no scores of all classes; ask for them when it is segmented")
    if answer.place:
        _write_tiff(answer, path)
        return
    content = io.BytesIO()
    np.savez_compressed(content, scores=answer.scores.astype(KIND), names=np.array(_scored(answer), np.str_))
    path.write_bytes(content.getvalue())


def _scored(answer: Answer) -> tuple[str, ...]:
    assert answer.scores is not None
    return tuple(answer.names[: len(answer.scores)])


def _write_tiff(answer: Answer, path: Path) -> None:
    rasterio = needed("rasterio", "geo", "the scores of a picture with a place on Earth")
    assert answer.scores is not None
    try:
        with rasterio.open(
            path,
            "w",
            driver="COG",
            height=answer.height,
            width=answer.width,
            count=len(answer.scores),
            dtype="float32",
            compress="deflate",
            predictor="YES",
            nodata=np.nan,
            bigtiff="IF_SAFER",
            **answer.place,
        ) as file:
            for band, (name, scores) in enumerate(zip(_scored(answer), answer.scores, strict=True), 1):
                file.write(np.where(answer.labels < 0, np.nan, scores).astype(np.float32), band)
                file.set_band_description(band, name)
    except rasterio.errors.RasterioIOError as error:
        raise OSError(f"the scores cannot be written: {error}") from error
