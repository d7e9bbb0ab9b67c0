"""Which numbers become black and white."""

import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinov3seg_jax.data import stretch
from dinov3seg_jax.data.images import as_array, read_image, read_pixels
from dinov3seg_jax.data.scenes import View, parse_bands
from dinov3seg_jax.data.stretch import parse_stretch
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.pictures.rasters import open_raster
from tests.data.rasters import PLACE, save_raster

VALUES = np.random.default_rng(0).integers(0, 3060, (3, 40, 50)).astype(np.uint16)


def expected(values, low, high):
    return np.moveaxis(np.rint((np.clip(values.astype(float), low, high) - low) * 255 / (high - low)), 0, -1)


@pytest.mark.parametrize("text", ["2,98", " 2 , 98.5 ", "minmax", "0:3000", "-5:1e4", ".5,99"])
@pytest.mark.parametrize("kind", ["uint16", "float32", "int16"])
@pytest.mark.parametrize("name", ["a.tif", "place.tif"])
def test_stretches(tmp_path, text, kind, name):
    """Whole and in parts, the same for all bands."""
    values = VALUES.astype(kind)
    path = save_raster(tmp_path / name, values, **(PLACE if name == "place.tif" else {}))
    asked = parse_stretch(text)
    if asked.kind == "percentiles":
        low, high = np.percentile(values, (asked.low, asked.high))
    else:
        low, high = (values.min(), values.max()) if asked.kind == "extremes" else (asked.low, asked.high)
    whole = read_pixels(path, View(stretch=asked)).rgb
    np.testing.assert_array_equal(whole, expected(values, low, high))
    raster = open_raster(path, View(stretch=asked))
    np.testing.assert_array_equal(raster.read(3, 37, 5, 50), whole[3:37, 5:])
    assert parse_stretch(str(asked)) == asked


def test_stretches_of_what_pillow_reads(tmp_path, monkeypatch):
    Image.fromarray(VALUES[0]).save(tmp_path / "a.png")
    asked = View(stretch=parse_stretch("0:3000"))
    grey = np.repeat(expected(VALUES[:1], 0, 3000), 3, -1)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png", asked).rgb, grey)
    np.testing.assert_array_equal(open_raster(tmp_path / "a.png", asked).read(0, 40, 0, 50), grey)
    Image.fromarray(np.array([[[10, 20, 30, 255], [0, 0, 0, 0]]], np.uint8)).save(tmp_path / "b.png")
    assert read_pixels(tmp_path / "b.png", View(stretch=parse_stretch("10:30"))).rgb.tolist() == [
        [[0, 128, 255], [255] * 3]
    ]
    Image.fromarray(np.array([[10, 20, 30]], np.uint8)).save(tmp_path / "c.png")
    assert read_pixels(tmp_path / "c.png", View(stretch=parse_stretch("minmax"))).rgb[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("part", [1, 60, 300, 10**6])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 1}])
def test_percentiles_of_a_large_raster_come_from_a_grid(tmp_path, monkeypatch, part, layout):
    """Of all of it, and the same ones whole and in parts, whatever rows are read together."""
    monkeypatch.setattr(stretch, "MOST_SAMPLES", 300)
    monkeypatch.setattr("dinov3seg_jax.data.scenes.PART", part)
    path = save_raster(tmp_path / "a.tif", VALUES.astype(np.float32), **layout)
    step = stretch.grid_step(40, 50)
    assert step == 3
    low, high = np.percentile(VALUES[:, ::step, ::step].astype(np.float32), (2, 98))
    view = View(stretch=parse_stretch("2,98"))
    np.testing.assert_array_equal(read_pixels(path, view).rgb, expected(VALUES, low, high))
    np.testing.assert_array_equal(open_raster(path, view).read(0, 40, 0, 50), expected(VALUES, low, high))


@pytest.mark.parametrize("text", ["", "2", "2;98", "a,b", "1:2:3", "nan,3", "0:inf", "2,98,", "-1e999:2"])
def test_what_is_no_stretch(text):
    with pytest.raises(UserError, match=r"--stretch is .*; write percentiles as in 2,98, or minmax, or the values"):
        parse_stretch(text)


def test_stretches_that_cannot_be(tmp_path):
    for text in ("98,2", "3:3", "1e999:2e999"):
        with pytest.raises(UserError, match="whose first number must be the smaller one"):
            parse_stretch(text)
    for text in ("-1,50", "2,300"):
        with pytest.raises(UserError, match="percentiles lie from 0 to 100; write values as in 0:3000"):
            parse_stretch(text)


@pytest.mark.parametrize("container", ["png", "tif", "planes.tif"])
def test_a_picture_that_is_nearly_black_is_told(tmp_path, capsys, container):
    path = tmp_path / f"a.{container}"

    def write(values):
        if container == "planes.tif":
            tifffile.imwrite(path, np.stack([values] * 3), photometric="rgb", planarconfig="separate")
        else:
            Image.fromarray(values).save(path)

    write(np.array([[0, 3060]], np.uint16))
    read_image(path)
    assert capsys.readouterr().err == (
        f"note: no value of {path} exceeds 3,060 of 65,535, so that it is nearly black; --stretch, as in 2,98 or "
        "0:3000, spreads the values there are\n"
    )
    for values in ([[0, 4000]], [[0, 0]]):  # bright enough, and black whatever is done
        write(np.array(values, np.uint16))
        read_image(path)
        assert capsys.readouterr().err == ""
    write(np.array([[0, 3060]], np.uint16))
    read_pixels(path, View(stretch=parse_stretch("minmax")))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("kind", "highest", "white"), [("float32", 0.03, 1), ("int32", 9, 255), ("float64", 12, 255)])
def test_other_numbers_that_are_nearly_black(tmp_path, capsys, kind, highest, white):
    values = np.array([[0, highest]], kind)
    tifffile.imwrite(tmp_path / "a.tif", values)
    read_image(tmp_path / "a.tif")
    assert f"a.tif exceeds {highest} of {white}, so that it is nearly black; --stretch" in capsys.readouterr().err
    as_array(values)
    assert f"no value of the image exceeds {highest} of {white}, so that it is nearly black" in capsys.readouterr().err


def test_percentiles_that_are_one_value(tmp_path, capsys):
    values = np.zeros((40, 50), np.uint16)
    values[0, 0] = 9
    Image.fromarray(values).save(tmp_path / "a.png")
    read_pixels(tmp_path / "a.png", View(stretch=parse_stretch("2,98")))
    assert "--stretch 2,98 finds nothing to spread in" in capsys.readouterr().err


def test_bands(tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 256, (5, 20, 30), np.uint8)
    path = save_raster(tmp_path / "a.tif", values)
    for bands in ((4, 3, 2), (5,), (1, 1, 1)):
        shown = np.moveaxis(np.resize(values[np.array(bands) - 1], (3, 20, 30)), 0, -1)
        view = View(bands)
        np.testing.assert_array_equal(read_pixels(path, view).rgb, shown)
        np.testing.assert_array_equal(open_raster(path, view).read(1, 20, 2, 30), shown[1:, 2:])
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(read_image(path), np.moveaxis(values[:3], 0, -1))
    assert capsys.readouterr().err == (
        f"note: {path} has 5 bands, of which the first three are shown as red, green and blue; --bands chooses others\n"
    )


def test_bands_that_there_are_not(tmp_path, monkeypatch):
    path = save_raster(tmp_path / "a.tif", np.zeros((2, 4, 5), np.uint8))
    with pytest.raises(UserError, match="a.tif has 2 bands, so --bands cannot name 3; name bands from 1 to 2"):
        read_pixels(path, View((3, 2, 1)))
    Image.new("RGB", (3, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="a.jpg is no raster with bands to choose from; leave --bands out"):
        read_pixels(tmp_path / "a.jpg", View((3, 2, 1)))
    jpeg2000 = save_raster(tmp_path / "a.jp2", np.zeros((3, 40, 50), np.uint8), driver="JP2OpenJPEG")
    with pytest.raises(UserError, match="a.jp2 has 3 bands, so --bands cannot name 4"):
        read_pixels(jpeg2000, View((4,)))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for file, message in ((path, "that rasterio reads"), (jpeg2000, "of which rasterio reads single bands")):
        with pytest.raises(UserError, match=message):
            read_pixels(file, View((1,)))


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1.5", "-1,2,3", "²"])
def test_what_are_no_bands(text):
    with pytest.raises(UserError, match=r"--bands is '.*'; write numbers as in 4,3,2"):
        parse_bands(text)


@pytest.mark.parametrize("text", ["1,2", "0,1,2", "1,2,3,4"])
def test_how_many_bands_are_named(text):
    with pytest.raises(UserError, match=r"--bands is \d.*; name three bands, red, green and blue, or one"):
        parse_bands(text)
    assert parse_bands(" 4, 3,2") == (4, 3, 2)
