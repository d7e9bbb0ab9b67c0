"""What can be chosen of an overlay, and what its legend says."""

import numpy as np
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.visualize import Drawing, draw, drawing, overlay, palette

NAMES = ["dog", "sky", "sea"]
LABELS = np.zeros((400, 600), np.int32)
LABELS[:100] = 2
LABELS[:2, 0] = -1
IMAGE = np.full((400, 600, 3), 90, np.uint8)


def drawn(**options):
    return draw(IMAGE, LABELS, NAMES, palette(3), Drawing(**options))


@pytest.fixture
def rows(monkeypatch):
    """What the legend is given: name, share and colour of each row."""
    seen = []

    def listen(picture, names, colors, shares):
        seen.extend(zip(names, shares, [*map(tuple, colors.tolist()), *[None] * len(names)], strict=False))
        return picture

    monkeypatch.setattr(drawing, "with_legend", listen)
    return seen


def test_a_drawing_without_options_is_the_overlay_with_a_legend():
    picture = drawn()
    np.testing.assert_array_equal(picture[:400, :600], overlay(IMAGE, LABELS, palette(3)))
    assert picture.shape[1] > 600


def test_options():
    plain = overlay(IMAGE, LABELS, palette(3), alpha=0.2, contours="off")
    np.testing.assert_array_equal(drawn(opacity=0.2, contours="off", legend=False), plain)
    named = drawn(opacity=0.2, contours="off", labels=True, legend=False)
    assert named.shape == plain.shape
    assert (named != plain).any()


def test_the_legend_has_shares_the_largest_first(rows):
    drawn()
    first, second, third = map(tuple, palette(3).tolist())
    assert rows == [("dog", "75.0%", first), ("sea", "25.0%", third), ("no data", "(<0.1% of all)", None)]
    assert second not in [row[2] for row in rows]


def test_shares_of_a_whole_that_the_labels_are_a_part_of(rows):
    draw(IMAGE, LABELS, NAMES, palette(3), Drawing(), counts=np.array([1, 10_000, 0]), nodata=0)
    assert [row[:2] for row in rows] == [("sky", ">99.9%"), ("dog", "<0.1%")]


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 7, "0.0%"), (7, 7, "100.0%"), (1, 3, "33.3%"), (1, 10**6, "<0.1%"), (10**6 - 1, 10**6, ">99.9%")],
)
def test_a_share_is_never_rounded_to_nothing_or_to_all(part, whole, text):
    assert drawing.percent(part, whole) == text


@pytest.mark.parametrize("opacity", [-0.1, 1.01, float("nan"), float("inf"), "0.5", None])
def test_an_opacity_that_is_none(opacity):
    with pytest.raises(UserError, match=r"opacity is .*; give a number from 0 \(no tint\) to 1 \(no picture\)"):
        Drawing(opacity=opacity)


def test_contours_that_are_none():
    with pytest.raises(
        UserError, match=r"contours are 'thinn' \(did you mean 'thin'\?\); choose one of thin, off, only"
    ):
        Drawing(contours="thinn")
