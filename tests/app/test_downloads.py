"""Archives hold what `predict` writes, drawn as the page draws it."""

import dataclasses
import importlib.util
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.app.downloads import Drawing, archive, available, check_formats, stem_of
from dinov3seg_jax.app.results import Answer
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation


def result():
    labels = np.array([[0, 0, 1], [1, 1, -1]], np.int32)
    confidence = np.array([[0.9, 0.2, 0.9], [0.5, 0.1, 0.0]], np.float32)
    return Segmentation(labels, confidence, ("dog", "grass"), np.full((2, 3, 3), 100, np.uint8))


def test_the_drawing_changes_colours_and_makes_pixels_unknown():
    drawn = Drawing.read('{"min_confidence": 0.5, "colors": {"dog": "#0102fe", "cat": "#000000"}, "hidden": []}')
    applied = drawn.applied(result())
    assert applied.labels.tolist() == [[0, 2, 1], [1, 2, -1]]
    assert applied.names == ("dog", "grass", "unknown")
    assert applied.colors[0].tolist() == [1, 2, 254]
    assert applied.colors[1].tolist() == result().colors[1].tolist()


def test_without_a_drawing_nothing_changes():
    applied = Drawing.read("").applied(result())
    np.testing.assert_array_equal(applied.labels, result().labels)
    assert applied.summary() == result().summary()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opacity": 3}, "opacity cannot be used: it should be less than or equal to 1"),
        ({"min_confidence": float("nan")}, "min_confidence cannot be used"),
        ({"min_confidence": "much"}, "min_confidence cannot be used"),
        ({"colors": [1]}, "colors cannot be used: it should be a valid dictionary"),
    ],
)
def test_a_drawing_that_cannot_be_used(values, message):
    with pytest.raises(UserError, match=message):
        Drawing.of(**values)
    with pytest.raises(UserError, match="the drawing cannot be used: Invalid JSON"):
        Drawing.read("{")


def test_a_colour_that_is_none():
    with pytest.raises(UserError, match="'<b>' is no colour; write it as in #aa3300"):
        Drawing.of(colors={"dog": "<b>"}).applied(result())


def test_the_name_of_what_is_unknown_is_no_class():
    named = dataclasses.replace(result(), names=("dog", "unknown"))
    with pytest.raises(UserError, match="pixels below min_confidence would be called 'unknown', as a class is"):
        Drawing.of(min_confidence=0.5).applied(named)


def test_the_opacity_is_that_of_the_overlay():
    assert Drawing.of(opacity=0.25).applied(result()).drawing.opacity == 0.25


def answer_of(*results, name="my dog.png", source=None):
    return Answer(name, {}, "tiny", (), results, source)


def no_scores(number):
    raise AssertionError("nobody asked for scores")


def test_an_archive_holds_what_was_asked_for(tmp_path):
    outputs = check_formats(["labels", "json", "numpy", "csv"])
    path = archive(answer_of(result()), outputs, Drawing(), tmp_path, no_scores)
    assert path.name == "my dog.zip"
    with zipfile.ZipFile(path) as zipped:
        own = ["my dog.json", "my dog_labels.npy", "my dog_labels.png", "my dog_summary.csv"]
        assert sorted(zipped.namelist()) == own
        assert json.loads(zipped.read("my dog.json"))["file"] == "my dog.png"
        with zipped.open("my dog_labels.png") as file, Image.open(file) as labels:
            assert np.array(labels).tolist() == [[0, 0, 1], [1, 1, 255]]
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_two_lists_lie_in_two_folders(tmp_path):
    path = archive(answer_of(result(), result()), check_formats(["json"]), Drawing(), tmp_path, no_scores)
    with zipfile.ZipFile(path) as zipped:
        assert sorted(zipped.namelist()) == ["names_1/my dog.json", "names_2/my dog.json"]


def test_scores_are_asked_for_when_they_are_wanted(tmp_path):
    scores = np.random.default_rng(0).random((2, 2, 3)).astype(np.float16)
    path = archive(answer_of(result()), check_formats(["scores"]), Drawing(), tmp_path, lambda number: scores)
    with zipfile.ZipFile(path) as zipped, zipped.open("my dog_scores.npz") as file:
        found = np.load(io.BytesIO(file.read()))
        np.testing.assert_array_equal(found["scores"], scores)
        assert found["names"].tolist() == ["dog", "grass"]


def test_what_is_unknown_has_no_score(tmp_path):
    scores = np.ones((2, 2, 3), np.float32)
    drawing = Drawing.of(min_confidence=0.5)
    path = archive(answer_of(result()), check_formats(["scores", "json"]), drawing, tmp_path, lambda number: scores)
    with zipfile.ZipFile(path) as zipped, zipped.open("my dog_scores.npz") as file:
        found = np.load(io.BytesIO(file.read()))
        assert found["names"].tolist() == ["dog", "grass"]
        assert json.loads(zipped.read("my dog.json"))["names"] == ["dog", "grass", "unknown"]


def test_a_place_on_earth_is_kept(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    source = tmp_path / "scene.tif"
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(400_000, 5_000_000, 10, 10)}
    with rasterio.open(source, "w", "GTiff", 3, 2, 3, dtype="uint8", **place) as file:
        file.write(np.full((3, 2, 3), 90, np.uint8))
    answer = answer_of(result(), name="scene.tif", source=source)
    path = archive(answer, check_formats(["labels"]), Drawing(), tmp_path, no_scores)
    with zipfile.ZipFile(path) as zipped:
        assert zipped.namelist() == ["scene_labels.tif"]
        zipped.extractall(tmp_path)
    with rasterio.open(tmp_path / "scene_labels.tif") as file:
        assert (file.crs.to_string(), file.transform) == (place["crs"], place["transform"])
        np.testing.assert_array_equal(file.read(1), [[0, 0, 1], [1, 1, 255]])


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ([], "no format is chosen"),
        ("json", "no format is chosen"),
        (["jsn"], r"there is no format 'jsn' \(did you mean 'json'\?\)"),
        ([["json"]], "there is no format"),
    ],
)
def test_formats_that_are_none(formats, message):
    with pytest.raises(UserError, match=message):
        check_formats(formats)


def test_formats_whose_libraries_are_missing_are_not_offered(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pycocotools" else find(name))
    offered = available()
    assert {"overlay", "labels", "json", "numpy", "csv", "scores"} <= set(offered)
    assert "coco" not in offered


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("../../etc/passwd", "passwd"),
        ('a<b>&"c.png', "a_b___c"),
        ("x" * 300 + ".png", "x" * 60),
        (".png", "png"),
        ("狗.jpg", "狗"),
        ("...", "result"),
        ("a\n/b\0c.png", "b_c"),
    ],
)
def test_names_of_files_are_harmless(name, stem):
    assert stem_of(name) == stem
