"""Two results beside each other: the same class has one colour, and differences are where names differ."""

import dataclasses

import numpy as np
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.visualize import Drawing, compare, comparison, overlay


@dataclasses.dataclass
class Result:
    image: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    colors: np.ndarray
    drawing: Drawing = dataclasses.field(default_factory=lambda: Drawing(legend=False))


IMAGE = np.full((100, 150, 3), 90, np.uint8)
RED, BLUE, GREEN = (230, 30, 30), (30, 30, 230), (30, 200, 30)


def result(labels, names, colors, **options):
    return Result(IMAGE, np.asarray(labels), names, np.array(colors, np.uint8), **options)


def halves(left, right):
    labels = np.full((100, 150), left)
    labels[:, 75:] = right
    return labels


DOG = result(halves(0, 1), ("dog", "grass"), [RED, GREEN])
CAT = result(halves(1, 0), ("grass", "cat"), [BLUE, RED])


@pytest.fixture
def panels(monkeypatch):
    """What stands side by side: pictures and titles."""
    seen = []
    monkeypatch.setattr(comparison, "side_by_side", lambda *arguments: seen.append(arguments) or arguments[0][0])
    return seen


def test_both_results_and_where_they_differ(panels):
    compare(DOG, CAT, ["a", "b"])
    (first, second, difference), titles = panels[0]
    assert titles == ["a", "b", "they differ in 50.0%"]
    np.testing.assert_array_equal(first, overlay(IMAGE, DOG.labels, DOG.colors))
    assert (first[:, 80:] == second[:, 80:]).all()  # grass, in the colour of the first
    assert (first[:, :70] != second[:, :70]).any(axis=-1).all()  # a cat has not the dog's red
    pink = (difference == difference[0, 0]).all(axis=-1)
    np.testing.assert_array_equal(pink, halves(True, False))


def test_names_count_and_not_their_places(panels):
    compare(DOG, result(halves(1, 0), ("grass", "dog"), [GREEN, RED]))
    assert panels[0][1] == ["first", "second", "they differ in 0.0%"]


def test_no_data_on_both_sides_is_no_difference(panels):
    labels = halves(-1, 0)
    labels[:50] = -1
    compare(result(labels, ("dog",), [RED]), result(np.where(labels == 0, 1, -1), ("cat", "sky"), [RED, BLUE]))
    assert panels[0][1][2] == "they differ in 100.0%"
    nothing = result(np.full((100, 150), -1), ("dog",), [RED])
    compare(nothing, nothing)
    assert panels[1][1][2] == "they differ in 0.0%"


def test_the_legend_has_the_shares_of_both(monkeypatch):
    seen = []
    monkeypatch.setattr(comparison, "with_legend", lambda picture, *rows: seen.append(rows) or picture)
    gaps = DOG.labels.copy()
    gaps[:50] = -1
    compare(dataclasses.replace(DOG, labels=gaps, drawing=Drawing()), CAT)
    names, colors, shares = seen[0]
    assert dict(zip(names, shares, strict=True)) == {
        "grass": "50.0% / 50.0%",
        "dog": "50.0% / 0.0%",
        "cat": "0.0% / 50.0%",
        "no data": "50.0% / 0.0%",
    }
    assert len(colors) == 3


def test_a_comparison_is_one_picture():
    picture = compare(dataclasses.replace(DOG, drawing=Drawing(labels=True)), CAT)
    assert picture.dtype == np.uint8
    assert picture.shape[1] >= 450


def test_of_a_large_picture_all_pixels_count_and_fewer_are_drawn(panels):
    labels = np.zeros((400, 4000), np.int32)
    labels[1::2] = 1  # none of which is in the middle of anything
    large = Result(np.zeros((400, 4000, 3), np.uint8), labels, ("dog", "cat"), np.array([RED, BLUE], np.uint8))
    compare(large, dataclasses.replace(large, labels=np.zeros_like(labels)))
    assert panels[0][1][2] == "they differ in 50.0%"
    assert {panel.shape for panel in panels[0][0]} == {(205, 2048, 3)}


def test_pictures_of_two_sizes():
    small = result(np.zeros((3, 4), int), ("dog",), [RED])
    with pytest.raises(UserError, match="150 x 100 and 4 x 3 pixels; compare two of the same picture"):
        compare(DOG, small)
