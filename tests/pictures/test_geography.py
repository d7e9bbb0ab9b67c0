"""Where on Earth a picture lies, and where it has no data, are never lost without a word."""

import io
import itertools
import json
import sys

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinov3seg_jax.cli.predict import describe
from dinov3seg_jax.data.images import read_image, read_pixels
from dinov3seg_jax.data.scenes import View
from dinov3seg_jax.data.stretch import parse_stretch
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import huge
from dinov3seg_jax.pictures.batches import segment_pictures
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.pictures.rasters import open_raster
from tests.data.rasters import PLACE, save_raster
from tests.pictures.test_huge import ENOUGH, Stub, labels_in, names_of, scene

COLORS = np.moveaxis(scene(70, 90), -1, 0)
EVERYWHERE = {"crs": rasterio.CRS.from_string(PLACE["crs"]), "transform": PLACE["transform"]}


class TiledStub(Stub):
    """Goes through folders, too."""

    def batch_shape(self, height, width):
        return 0, 0

    def segment_arrays(self, images, names, batch_size=1, scores=False):
        """A class is a shade."""
        labels = [image.mean(-1).astype(int) * len(names) // 256 for image in images]
        pairs = zip(labels, images, strict=True)
        return [Segmentation(label, np.ones(label.shape), tuple(names), image) for label, image in pairs]


class WholeStub(TiledStub):
    """Sees whole pictures only, as zero-shot models and linear heads do."""

    tiles = None


def predict(source, out, model=None, count=5, view=None):
    """As the command does."""
    picture = Picture(source, out / "a")
    out.mkdir(exist_ok=True)
    arguments = (names_of(count), [picture], {picture}, 1, 2 * ENOUGH)
    (outcome,) = segment_pictures(model or TiledStub(), *arguments, *([] if view is None else [view]))
    return outcome


def labels_of(out):
    with rasterio.open(out / "a_labels.tif") as file:
        assert {"crs": file.crs, "transform": file.transform} == EVERYWHERE
        return file.read(1), file.nodata, file.dataset_mask()


@pytest.mark.parametrize("model", [TiledStub, WholeStub])
@pytest.mark.parametrize("how", ["nodata", "alpha", "NaN"])
@pytest.mark.parametrize(("count", "none"), [(5, 255), (255, 255), (256, 65535)])
def test_what_has_no_data_has_no_label(tmp_path, model, how, count, none):
    """A quarter of the picture, which was counted and tinted."""
    values = np.maximum(COLORS, 1)
    values[:, 20:50, 30:60] = 0
    empty = np.zeros((70, 90), bool)
    empty[20:50, 30:60] = True
    path = tmp_path / "a.tif"
    if how == "nodata":
        save_raster(path, values, nodata=0, **PLACE)
    elif how == "alpha":
        save_raster(path, np.concatenate([values, np.where(empty, 0, 255)[None].astype(np.uint8)]), **PLACE)
    else:
        save_raster(path, np.where(empty, np.nan, values).astype(np.float32), **PLACE)
    outcome = predict(path, tmp_path / "out", model(), count)
    labels, nodata, mask = labels_of(tmp_path / "out")
    assert nodata == none
    np.testing.assert_array_equal(labels == none, empty)
    np.testing.assert_array_equal(mask == 0, empty)
    assert labels[~empty].max() < count
    summary = json.loads((tmp_path / "out" / "a.json").read_text())
    assert summary["nodata_pixels"] == outcome.summary["nodata_pixels"] == 900
    assert summary["labels"] == "a_labels.tif"
    assert sum(row["pixels"] for row in summary["classes"]) == 70 * 90 - 900
    assert sum(row["fraction"] for row in summary["classes"]) == pytest.approx(1)
    overlay = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png"))[:70, :90]
    np.testing.assert_array_equal(overlay[25:45, 35:55], read_image(path)[25:45, 35:55])
    assert (overlay[:15, :25] != read_image(path)[:15, :25]).any()


def test_a_result_knows_its_place(tmp_path, model):
    path = save_raster(tmp_path / "a.tif", np.maximum(COLORS, 1), **PLACE)
    (many,) = model.segment_many([path], "sky, sea")
    for result in (model.segment(path, "sky, sea"), many):
        assert result.place == EVERYWHERE
    assert model.segment(read_image(path), "sky, sea").place == {}


def test_a_raster_without_any_data(tmp_path):
    path = save_raster(tmp_path / "a.tif", np.zeros((3, 70, 90), np.uint8), nodata=0, **PLACE)
    outcome = predict(path, tmp_path / "out")
    assert outcome.summary["nodata_pixels"] == 6300
    assert not any(row["pixels"] or row["fraction"] for row in outcome.summary["classes"])
    assert describe(outcome.summary) == "90 x 70, 6,300 pixels without data"


@pytest.mark.parametrize("model", [TiledStub, WholeStub])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32", "jp2", "jp2 16"])
def test_every_kind_keeps_its_place(tmp_path, model, kind):
    """Only bytes and 16 bits did, of TIFFs, and not for models that see whole pictures."""
    if kind.startswith("jp2"):
        values = COLORS if kind == "jp2" else COLORS.astype(np.uint16) * 257
        path = save_raster(tmp_path / "a.jp2", values, driver="JP2OpenJPEG", **PLACE)
    else:
        path = save_raster(tmp_path / "a.tif", COLORS.astype(kind) * (257 if kind == "uint16" else 1), **PLACE)
    assert predict(path, tmp_path / "out", model()).error == ""
    labels, _, mask = labels_of(tmp_path / "out")
    assert labels.max() < 5
    assert mask.all()


def test_ground_control_points_are_kept(tmp_path):
    points = [rasterio.control.GroundControlPoint(row, col, 10 + col, 50 - row) for row in (0, 70) for col in (0, 90)]
    path = save_raster(tmp_path / "a.tif", COLORS, gcps=points, crs="EPSG:4326")
    predict(path, tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "a_labels.tif") as file:
        assert [(point.x, point.y) for point in file.gcps[0]] == [(point.x, point.y) for point in points]


def test_a_place_in_a_file_beside_it(tmp_path):
    """Of a TIFF that has no tags for it."""
    Image.fromarray(scene(70, 90)).save(tmp_path / "a.tif")
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-2\n500001\n5000001\n")
    for model, out in ((TiledStub(), tmp_path / "tiled"), (WholeStub(), tmp_path / "whole")):
        predict(tmp_path / "a.tif", out, model)
        with rasterio.open(out / "a_labels.tif") as file:
            assert file.transform == rasterio.Affine(2, 0, 500000, 0, -2, 5000002)


def test_the_polynomials_of_a_satellite_are_kept(tmp_path):
    polynomials = {"line_num_coeff": [1.0] * 20, "line_den_coeff": [2.0] * 20, "samp_num_coeff": [3.0] * 20}
    offsets = {f"{name}_{kind}": 5.0 for name in ("height", "lat", "line", "long", "samp") for kind in ("off", "scale")}
    rpcs = rasterio.rpc.RPC(samp_den_coeff=[4.0] * 20, **polynomials, **offsets)
    predict(save_raster(tmp_path / "a.tif", COLORS, rpcs=rpcs), tmp_path / "out")
    with rasterio.open(tmp_path / "out" / "a_labels.tif") as file:
        assert file.rpcs.samp_den_coeff == [4.0] * 20


@pytest.mark.parametrize("name", ["a.tif", "a.jp2"])
def test_a_place_that_is_lost_is_told(tmp_path, monkeypatch, capsys, name):
    """Where rasterio is not installed."""
    driver = "GTiff" if name == "a.tif" else "JP2OpenJPEG"
    path = save_raster(tmp_path / name, COLORS[:1], driver=driver, **PLACE)
    Image.fromarray(scene(70, 90)).save(tmp_path / "plain.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert predict(path, tmp_path / "out").error == ""
    assert (tmp_path / "out" / "a_labels.png").exists()
    assert (
        f"{path} says which place on Earth it shows, and its labels do not; install rasterio" in capsys.readouterr().err
    )
    predict(tmp_path / "plain.tif", tmp_path / "out")
    assert capsys.readouterr().err == ""


def test_the_place_of_ink_is_lost_and_told(tmp_path, capsys):
    """Which Pillow alone reads."""
    path = save_raster(tmp_path / "a.tif", np.resize(COLORS, (4, 70, 90)), photometric="CMYK", **PLACE)
    predict(path, tmp_path / "out")
    assert "its labels do not; convert it to RGB, and they do" in capsys.readouterr().err


def test_what_cannot_be_shown_is_told_by_whoever_knows_why(tmp_path):
    """It was read in another way, or called damaged."""
    path = save_raster(tmp_path / "a.tif", np.ones((3, 70, 90), np.complex64), **PLACE)
    outcome = predict(path, tmp_path / "out")
    assert outcome.summary is None
    assert "a.tif holds complex64 values; convert them to real numbers" in outcome.error
    Image.fromarray(scene(70, 90)).save(tmp_path / "b.png")
    assert "b.png is no raster with bands" in predict(tmp_path / "b.png", tmp_path / "out", view=View((3, 2, 1))).error


@pytest.mark.parametrize("place", [{}, PLACE])
def test_bands_and_stretch_reach_the_model(tmp_path, place):
    """By either way: labels are those of the same picture as bytes."""
    values = np.zeros((8, 70, 90), np.uint16)
    values[[5, 3, 1]] = COLORS.astype(np.uint16) * 12 + 7
    path = save_raster(tmp_path / "a.tif", values, **place)
    save_raster(tmp_path / "b.tif", COLORS, **place)
    view = View((6, 4, 2), parse_stretch("7:3067"))
    np.testing.assert_array_equal(read_pixels(path, view).rgb, scene(70, 90))
    predict(path, tmp_path / "a", view=view)
    predict(tmp_path / "b.tif", tmp_path / "b")
    name = "a_labels.tif" if place else "a_labels.png"
    np.testing.assert_array_equal(labels_in(tmp_path / "a" / name), labels_in(tmp_path / "b" / name))
    options = {"bands": [6, 4, 2], "stretch": "7:3067"}
    huge.segment_file(Stub(), path, names_of(5), tmp_path / "c", "a", ENOUGH, **options)
    huge.segment_file(Stub(), tmp_path / "b.tif", names_of(5), tmp_path / "d", "a", ENOUGH)
    np.testing.assert_array_equal(
        labels_in(tmp_path / "c" / "a_labels.tif"), labels_in(tmp_path / "d" / "a_labels.tif")
    )
    with pytest.raises(UserError, match="--bands is 6,4; name three bands"):
        huge.segment_file(Stub(), path, names_of(5), tmp_path / "c", "a", ENOUGH, bands=[6, 4])


def test_another_stretch_is_another_question():
    questions = [
        View(bands, stretch).question()
        for bands, stretch in itertools.product(
            ((), (3, 2, 1)), (None, parse_stretch("2,98"), parse_stretch("2:98"), parse_stretch("minmax"))
        )
    ]
    assert all(json.loads(json.dumps(question)) == question for question in questions)
    assert all(one != other for one, other in itertools.combinations(questions, 2))
    assert set(questions[0].values()) == {None}, "as in the records of earlier versions"


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    kind=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    bands=st.sampled_from([1, 2, 3, 4, 5]),
    nodata=st.sampled_from([None, 0, 7]),
    place=st.booleans(),
    stretch=st.sampled_from([None, "2,98", "minmax", "5:200"]),
    chosen=st.sampled_from([(), (1,), (1, 1, 1)]),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 3),
)
def test_whole_and_in_parts(tmp_path_factory, kind, bands, nodata, place, stretch, chosen, orientation, seed):
    """The same bytes, and the same gaps: floats were refused in parts, and 2 to 8 bands read in two ways."""
    values = np.random.default_rng(seed).integers(0, 256, (bands, 19, 23)).astype(kind)
    path = tmp_path_factory.getbasetemp() / "parts.tif"
    if place:
        save_raster(path, values, nodata=nodata, tiled=True, blockxsize=16, blockysize=16, **PLACE)
    else:
        tags = [(274, "H", 1, orientation, True)]
        if nodata is not None:
            tags.append((42113, "s", 0, str(nodata), True))
        stored = values[0] if bands == 1 else values
        color = {"planarconfig": "separate"} if bands > 1 else {}
        tifffile.imwrite(path, stored, photometric="minisblack", extratags=tags, metadata=None, **color)
    view = View(chosen, stretch and parse_stretch(stretch))
    rgb, valid, _ = read_pixels(path, view)
    raster = open_raster(path, view)
    height, width = rgb.shape[:2]
    assert (raster.height, raster.width) == (height, width)
    parts = [(0, 7, 0, width), (7, height, 0, 5), (7, height, 5, width)]
    for top, bottom, left, right in parts:
        part = np.s_[top:bottom, left:right]
        np.testing.assert_array_equal(raster.read(top, bottom, left, right), rgb[part])
        gaps = np.ones((height, width), bool) if valid is None else valid
        np.testing.assert_array_equal(raster.valid(top, bottom, left, right), gaps[part])
    empty = 0 if nodata is None else int((values == nodata).all(0).sum())
    assert empty == (0 if valid is None else int((~valid).sum()))
    raster.close()


def test_a_jpeg_2000_of_gdal_that_pillow_calls_broken(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 40, 50), np.uint8)
    for kind, factor in (("uint8", 1), ("uint16", 257)):
        options = {"driver": "JP2OpenJPEG", "reversible": "yes", "quality": 100}
        path = save_raster(tmp_path / f"{kind}.jp2", values.astype(kind) * factor, **options)
        np.testing.assert_array_equal(read_image(path), np.moveaxis(values, 0, -1))
        np.testing.assert_array_equal(open_raster(path).read(1, 30, 2, 50), np.moveaxis(values, 0, -1)[1:30, 2:])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="truncated or damaged|is no picture"):
        read_image(path)


def test_a_heic_picture(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "a.HEIC"
    flat = Image.new("RGB", (64, 48), (200, 100, 50))
    written = io.BytesIO()
    pillow_heif.from_pillow(flat).save(written, quality=95)
    path.write_bytes(written.getvalue())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(UserError, match=r"a.HEIC is a HEIC picture, which pillow-heif reads; install that with"):
            read_image(path)
    assert np.abs(read_image(path).astype(int) - (200, 100, 50)).max() <= 4
    assert read_image(path).shape == (48, 64, 3)
