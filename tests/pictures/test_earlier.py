"""Results are read again as they were written."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import huge
from dinov3seg_jax.pictures.earlier import read_earlier
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.pictures.rasters import open_raster
from dinov3seg_jax.visualize import Drawing
from tests.data.rasters import save_raster

LABELS = np.array([[2, 2, 0, -1], [2, 2, 2, 0]], np.int32)
IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def saved(folder, names=("sky", "sea", "wood"), labels=LABELS, **options):
    """A picture with its results."""
    Image.fromarray(IMAGE).save(folder / "a.png")
    result = Segmentation(labels, np.full((2, 4), 0.5), tuple(names), IMAGE, **options)
    result.save(folder, "a")
    return Picture(folder / "a.png", folder / "a"), result


@pytest.mark.parametrize("count", [3, 300])
def test_what_was_written(tmp_path, count):
    picture, result = saved(tmp_path, [f"name {number}" for number in range(count)])
    earlier = read_earlier(picture, drawing=Drawing(legend=False))
    np.testing.assert_array_equal(earlier.image, IMAGE)
    np.testing.assert_array_equal(earlier.labels, LABELS)
    np.testing.assert_array_equal(earlier.colors, result.colors)
    assert earlier.names == result.names
    assert earlier.counts[:3].tolist() == [2, 0, 5]
    assert earlier.nodata == 1
    assert earlier.drawing == Drawing(legend=False)


def test_colours_are_those_of_the_file(tmp_path):
    colors = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    picture, _ = saved(tmp_path, colors=colors, labels=np.abs(LABELS))
    np.testing.assert_array_equal(read_earlier(picture).colors, colors)


def test_labels_with_a_place_on_earth(tmp_path):
    save_raster(tmp_path / "a.tif", IMAGE.transpose(2, 0, 1), crs="EPSG:32633")
    result = Segmentation(LABELS, np.full((2, 4), 0.5), ("sky", "sea", "wood"), IMAGE)
    with contextlib.closing(open_raster(tmp_path / "a.tif")) as raster:
        result.save(tmp_path, "a", label_writer=lambda place: huge.write_labels(raster, [LABELS], place, result.colors))
    earlier = read_earlier(Picture(tmp_path / "a.tif", tmp_path / "a"))
    np.testing.assert_array_equal(earlier.labels, LABELS)
    np.testing.assert_array_equal(earlier.colors, result.colors)


def test_a_picture_in_tiles_is_read_at_the_size_of_its_overlay(tmp_path, monkeypatch):
    monkeypatch.setattr(huge, "OVERVIEW_SIDE", 2)
    picture, _ = saved(tmp_path)
    summary = json.loads(picture.summary.read_text())
    picture.summary.write_text(json.dumps(summary | {"tiles": {}}))
    earlier = read_earlier(picture)
    assert earlier.image.shape == (1, 2, 3)
    assert earlier.labels.tolist() == [[2, 0]]  # those below and to the right of the middle
    assert earlier.counts.tolist() == [2, 0, 5]


def in_tiles(picture, size):
    """As if it had gone tile by tile, with labels of another size."""
    summary = json.loads(picture.summary.read_text())
    picture.summary.write_text(json.dumps(summary | {"tiles": {}}))
    Image.new("P", size).save(picture.target.with_name("a_labels.png"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda picture: picture.summary.unlink(), "there is no .*a.json; label the picture first"),
        (lambda picture: picture.summary.write_text("{"), "a.json cannot be read .*; label the picture again"),
        (lambda picture: picture.summary.write_text("{}"), "was not written by this program"),
        (lambda picture: picture.target.with_name("a_labels.png").unlink(), "a_labels.png cannot be read"),
        (lambda picture: Image.new("P", (9, 2)).save(picture.target.with_name("a_labels.png")), "not as large as"),
        (lambda picture: in_tiles(picture, (1, 1)), "not as large as"),
        (lambda picture: Image.new("RGB", (9, 2)).save(picture.path), "has 9 x 2 pixels, and its results 4 x 2"),
    ],
)
def test_what_is_missing_or_does_not_belong(tmp_path, damage, message):
    picture, _ = saved(tmp_path)
    damage(picture)
    with pytest.raises(UserError, match=message):
        read_earlier(picture)


def test_labels_that_only_rasterio_reads(tmp_path, monkeypatch):
    picture, _ = saved(tmp_path)
    summary = json.loads(picture.summary.read_text())
    picture.summary.write_text(json.dumps(summary | {"labels": "a_labels.tif"}))
    (tmp_path / "a_labels.tif").write_bytes(b"no raster")
    with pytest.raises(UserError, match=r"a_labels.tif cannot be read .*; label the picture again"):
        read_earlier(picture)
    monkeypatch.setattr("dinov3seg_jax.pictures.earlier.import_rasterio", lambda: None)
    with pytest.raises(UserError, match="is read with rasterio; install it with: pip install rasterio"):
        read_earlier(picture)
