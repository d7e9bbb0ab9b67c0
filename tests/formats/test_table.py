"""What a user asks of the formats."""

import importlib.util
import sys

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats import table
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.formats.outputs import Outputs, parse_min_area, parse_simplify
from dinov3seg_jax.formats.table import FORMATS, asked, parse_formats


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("overlay,csv", ("overlay", "csv")),
        (" CSV , cvat,csv,", ("csv", "cvat")),
        (("json", "labels"), ("json", "labels")),
    ],
)
def test_names(given, names):
    assert parse_formats(given) == names


def test_the_default():
    assert asked() == Outputs(("overlay", "labels", "json"), {}, 0.0, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("coko", r"there is no format 'coko' \(did you mean 'coco'\?\); choose from overlay, labels"),
        ("shapefile", "there is no format 'shapefile'; choose from"),
        ("", "'' names no format; choose from overlay"),
        (",", "',' names no format"),
        ((3,), "names no format"),
    ],
)
def test_no_format(given, message):
    with pytest.raises(UserError, match=message):
        parse_formats(given)


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.libraries])
def test_a_missing_library_names_its_extra(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    row = FORMATS[name]
    message = rf"the format {name} needs {row.libraries[0]}, which is not installed; install the extra '{row.extra}'"
    with pytest.raises(UserError, match=message):
        asked(f"csv,{name}")


def test_a_library_that_is_missed_later(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(UserError, match="a polygon needs shapely, which is not installed; install the extra 'geo'"):
        needed("shapely", "geo", "a polygon")


@pytest.mark.parametrize(
    ("given", "areas"),
    [
        (0, {}),
        (50, {"": 50}),
        ("50", {"": 50}),
        ("dog=50,sky=500", {"dog": 50, "sky": 500}),
        (" dog = 50 , 7 ", {"dog": 50, "": 7}),
        ("red, big ball=5,a=b=6", {"red, big ball": 5, "a=b": 6}),
        ({"dog": 3, "sky": 0}, {"dog": 3, "sky": 0}),
    ],
)
def test_min_area(given, areas):
    assert parse_min_area(given) == areas


@pytest.mark.parametrize("given", ["dog", "dog=", "dog=x", -1, "1.5", 1.5, None, True, {"dog": "many"}, float("nan")])
def test_no_area(given):
    with pytest.raises(UserError, match="give pixels, as in 50, or by class"):
        parse_min_area(given)


def test_an_area_twice():
    with pytest.raises(UserError, match="names a class twice"):
        parse_min_area("dog=1,dog=2")


def test_areas_of_classes():
    outputs = Outputs(min_area={"": 9, "dog": 50})
    assert outputs.least_areas(["sky", "dog"]).tolist() == [9, 50]
    with pytest.raises(UserError, match=r"the class 'dog', which is none of those that are asked for \(did you mean"):
        outputs.least_areas(["sky", "dogs"])


@pytest.mark.parametrize(("given", "pixels"), [("1.5", 1.5), (2, 2.0), (0, 0.0)])
def test_simplify(given, pixels):
    assert parse_simplify(given) == pixels


@pytest.mark.parametrize("given", ["much", -1, "nan", "inf", None])
def test_no_tolerance(given):
    with pytest.raises(UserError, match="give pixels that a border may move"):
        parse_simplify(given)


def test_what_results_depend_on():
    assert asked("coco").question() == {}
    assert asked("json,scores").question() == {"--format scores": True}
    assert asked("coco", 5, 2).question() == {"--min_area": {"": 5}, "--simplify": 2.0}


def test_every_format_is_written_somehow():
    for name, row in FORMATS.items():
        assert row.suffixes or row.joined, name
        assert bool(row.libraries) <= bool(row.extra), name
    own = [name for name, row in FORMATS.items() if row.suffixes and row.write is None]
    assert own == ["overlay", "labels", "json"]


def test_files_of_two_formats_never_have_one_name():
    names = [end for row in FORMATS.values() for end in (*row.suffixes, *row.joined)]
    assert len(set(names)) == len(names)


def test_summaries(tmp_path):
    for text, ours in (('{"names": [], "classes": []}', True), ("[]", False), ("{", False), ('{"names": 1}', False)):
        (tmp_path / "a.json").write_text(text)
        assert table.is_summary(tmp_path / "a.json") is ours
