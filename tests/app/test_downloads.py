"""Archives hold what `predict` writes, drawn as the page draws it."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.app.downloads import Drawing, archive, check_formats, stem_of
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


def test_an_archive_holds_what_was_asked_for(tmp_path):
    path = archive([result()], "my dog.png", ["labels", "json"], Drawing(), tmp_path)
    assert path.name == "my dog.zip"
    with zipfile.ZipFile(path) as zipped:
        assert sorted(zipped.namelist()) == ["my dog.json", "my dog_labels.png"]
        assert json.loads(zipped.read("my dog.json"))["file"] == "my dog.png"
        with zipped.open("my dog_labels.png") as file, Image.open(file) as labels:
            assert np.array(labels).tolist() == [[0, 0, 1], [1, 1, 255]]
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_two_lists_lie_in_two_folders(tmp_path):
    with zipfile.ZipFile(archive([result()] * 2, "a.png", ["json"], Drawing(), tmp_path)) as zipped:
        assert sorted(zipped.namelist()) == ["names_1/a.json", "names_2/a.json"]


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
