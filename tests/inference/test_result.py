"""What is written can be read back, and names travel with it."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.visualize import Drawing, palettes

LABELS = np.array([[2, 2, 0], [2, 2, 2]], np.int32)
CONFIDENCE = np.array([[0.5, 0.5, 0.25], [0.75, 0.75, 0.5]], np.float32)


def result(names=("sky", "sea", "grüner Wald"), labels=LABELS):
    return Segmentation(labels, CONFIDENCE, tuple(names), np.full((2, 3, 3), 99, np.uint8))


@pytest.mark.parametrize("stem", ["", "a/b", None, 3, "/a"])
def test_a_stem_is_a_name(tmp_path, stem):
    with pytest.raises(UserError, match="is no beginning of a file's name"):
        result().save(tmp_path, stem)


@pytest.mark.parametrize("stem", ["a\0b", "a" * 300])
def test_a_stem_that_no_file_can_have(tmp_path, stem):
    with pytest.raises(UserError, match="cannot be written"):
        result().save(tmp_path, stem)


def test_a_folder_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert result().save("~/x")[0] == tmp_path / "x" / "result_overlay.png"
    assert (tmp_path / "x" / "result.json").is_file()
    with pytest.raises(UserError, match="a path was expected, not a NoneType"):
        result().save(None)


def test_a_notebook_shows_the_overlay():
    shown = Image.open(io.BytesIO(result()._repr_png_()))
    np.testing.assert_array_equal(np.asarray(shown), result().overlay())


def test_files(tmp_path):
    paths = result().save(tmp_path / "new", "a.b", file="a.b.jpg")
    assert [path.name for path in paths] == ["a.b_overlay.png", "a.b_labels.png", "a.b.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    assert Image.open(paths[0]).mode == "RGB"
    with Image.open(paths[1]) as labels:
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.asarray(labels), LABELS)
    summary = json.loads(paths[2].read_text(encoding="utf-8"))
    assert summary == {
        "file": "a.b.jpg",
        "labels": "a.b_labels.png",
        "height": 2,
        "width": 3,
        "nodata_pixels": 0,
        "names": ["sky", "sea", "grüner Wald"],
        "classes": [
            {"name": "sky", "pixels": 1, "fraction": 1 / 6, "mean_confidence": 0.25},
            {"name": "sea", "pixels": 0, "fraction": 0.0, "mean_confidence": None},
            {"name": "grüner Wald", "pixels": 5, "fraction": 5 / 6, "mean_confidence": 0.6},
        ],
    }


@pytest.mark.parametrize("count", [256, 257, 500])
def test_labels_of_many_names(tmp_path, monkeypatch, count):
    monkeypatch.setattr(palettes, "MAX_COLORS", 300)
    many = result([f"name {index}" for index in range(count)], np.where(LABELS == 2, count - 1, 0).astype(np.int32))
    _, path, _ = many.save(tmp_path, "a")
    with Image.open(path) as labels:
        assert labels.mode == ("P" if count <= 256 else "I;16")
        np.testing.assert_array_equal(np.asarray(labels), many.labels)


def test_overlay_begins_with_the_picture():
    picture = result().overlay()
    assert picture.dtype == np.uint8
    assert picture.shape[0] >= 2
    assert picture.shape[1] >= 3


@pytest.mark.parametrize("options", [{"opacity": 0.1}, {"contours": "off"}, {"labels": True}, {"legend": False}])
def test_an_overlay_as_it_was_asked_for(options):
    large = Segmentation(
        np.repeat(LABELS, 200, axis=0).repeat(200, axis=1),
        np.ones((400, 600)),
        ("a", "b", "c"),
        np.full((400, 600, 3), 99, np.uint8),
    )
    asked = dataclasses.replace(large, drawing=Drawing(**options)).overlay()
    np.testing.assert_array_equal(large.overlay(**options), asked)
    assert asked.shape != large.overlay().shape or (asked != large.overlay()).any()


def test_an_overlay_that_cannot_be():
    with pytest.raises(UserError, match="opacity is 3"):
        result().overlay(opacity=3)


def test_two_results_side_by_side():
    assert result().compare(result(("sky", "sea", "lake"))).shape[1] > 9
    with pytest.raises(UserError, match="3 x 2 and 2 x 3 pixels"):
        result().compare(result(labels=LABELS.T))


def test_areas():
    assert result().areas() == {"grüner Wald": 5 / 6, "sky": 1 / 6}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        result().save(tmp_path / "file", "a")


@pytest.mark.parametrize(("count", "mode", "none"), [(3, "P", 255), (255, "P", 255), (256, "I;16", 65535)])
def test_pixels_without_data(tmp_path, count, mode, none):
    """They count for nothing, and have a value of their own."""
    valid = np.array([[True, True, False], [False, True, True]])
    partly = result([f"name {index}" for index in range(count)]).where(valid)
    assert partly.labels.tolist() == [[2, 2, -1], [-1, 2, 2]]
    assert partly.areas() == {"name 2": 1.0}
    assert partly.summary()["nodata_pixels"] == 2
    assert partly.summary()["classes"][2] == {"name": "name 2", "pixels": 4, "fraction": 1, "mean_confidence": 0.5625}
    _, path, _ = partly.save(tmp_path, "a")
    with Image.open(path) as labels:
        assert labels.mode == mode
        assert np.asarray(labels).tolist() == [[2, 2, none], [none, 2, 2]]
    whole = result()
    assert whole.where(None) is whole


def test_other_formats(tmp_path):
    paths = result().save(tmp_path, "a", "sub/a.jpg", formats="cvat, json,numpy", min_area="sky=2")
    assert [path.name for path in paths] == ["a.json", "a_cvat.xml", "a_labels.npy"]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["file"] == "a.jpg"
    assert paths[1].read_text(encoding="utf-8").count("<mask ") == 1
    np.testing.assert_array_equal(np.load(paths[2]), LABELS)
    with pytest.raises(UserError, match="there is no format 'cvt'"):
        result().save(tmp_path, "a", formats="cvt")


def test_regions_in_python():
    """The same as in files."""
    pytest.importorskip("shapely")
    first, second = sorted(result().polygons(), key=lambda region: region.area)
    assert (first.name, first.label, first.area, first.confidence) == ("sky", 0, 1, 0.25)
    assert first.shape.bounds == (2, 0, 3, 1)
    assert (second.name, second.area, second.shape.area) == ("grüner Wald", 5, 5)
    assert [region.name for region in result().polygons(min_area=2)] == ["grüner Wald"]
    content = result().to_geojson("a.png", {"sky": 2})
    assert [row["properties"]["class"] for row in content["features"]] == ["grüner Wald"]
    assert content["name"] == "a.png"


def test_coco_in_python():
    pytest.importorskip("pycocotools")
    for kind in ("regions", "classes", "polygons"):
        content = result().to_coco("a.png", kind)
        assert [row["file_name"] for row in content["images"]] == ["a.png"]
        assert sorted((row["category_id"], row["area"]) for row in content["annotations"]) == [(1, 1), (3, 5)]
    assert len(result().to_coco(min_area=2)["annotations"]) == 1


def test_a_table_in_python():
    pytest.importorskip("pandas")
    assert result().to_dataframe("a.png")["pixels"].tolist() == [1, 0, 5]


def test_detections_in_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="needs supervision, which is not installed; install the extra 'supervision'"):
        result().to_detections(min_area=2)
