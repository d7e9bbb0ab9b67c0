"""Legends and titles: what must hold for any size, any number of classes and any name."""

import numpy as np
import pytest

from dinov3seg_jax import fonts
from dinov3seg_jax.visualize import legend, legends, palette, side_by_side, with_legend

NAMES = ["red circle", "grass", "собака", "犬", "कुत्ता", "كلب", "🐕", "two\nlines", "\ud800", "", "long " * 60]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def is_drawn(picture):
    return picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3 and picture.min() < 100


@pytest.mark.parametrize("width", [1, 16, 300, 3000])
def test_legend_of_any_width_and_script(width):
    picture = legend(NAMES, palette(len(NAMES)), width)
    assert picture.shape[1:] == (width, 3)
    assert width < 50 or is_drawn(picture)


def test_without_a_font_that_has_them_latin_letters_lose_their_accents(monkeypatch):
    monkeypatch.setattr(fonts, "_files", lambda: ())
    fonts._somewhere.cache_clear()
    names = ("Straße, tiếng Ål, łąka ", "Strasse, tieng Al, laka ")
    accented, plain = (legend([name], palette(1), 300) for name in names)
    fonts._somewhere.cache_clear()
    np.testing.assert_array_equal(accented, plain)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (1, 400), (400, 1), (480, 640), (200, 3000)])
@pytest.mark.parametrize("count", [1, 3, len(NAMES)])
def test_with_legend_keeps_the_picture(height, width, count):
    picture = noise(height, width)
    whole = with_legend(picture, NAMES[:count], palette(count))
    np.testing.assert_array_equal(whole[:height, :width], picture)
    assert whole.shape[0] > height or whole.shape[1] > width
    for color in palette(count):
        assert (whole == color).all(axis=-1).sum() > 20


def test_few_names_stand_beside_and_many_below():
    picture = noise(400, 600)
    assert with_legend(picture, ["sky", "tree"], palette(2)).shape[0] == 400
    many = [f"class {number}" for number in range(171)]
    assert with_legend(picture, many, palette(171)).shape[1] == 600


def test_shares_stand_behind_the_names_at_the_right():
    names, shares = ["sky", "a longer name"], ["50.0%", "7%"]
    picture = legend(names, palette(2), 600, shares=shares)
    without = legend(names, palette(2), 600)
    assert picture.shape == without.shape
    ink = (picture.min(axis=-1) < 200) & (without.min(axis=-1) == 255)
    ends = [np.flatnonzero(half.any(axis=0))[-1] for half in np.array_split(ink, 2)]
    assert abs(ends[0] - ends[1]) <= 2


def test_a_name_without_a_colour_has_an_empty_box():
    picture = with_legend(noise(100, 200), ["sky", "no data"], palette(1))
    assert (picture == palette(1)[0]).all(axis=-1).any()
    assert picture[26:46, 205:].min() < 150


def test_white_is_seen_on_white():
    assert legend(["", ""], np.full((2, 3), 255, np.uint8), 100).min() < 150


def test_a_legend_does_not_eat_the_picture():
    many = [f"class {number}" for number in range(171)]
    picture = with_legend(noise(300, 400), many, palette(171))
    assert picture.shape[0] <= 600
    few = with_legend(noise(16, 16), many[:11], palette(11))
    for color in palette(11):
        assert (few == color).all(axis=-1).any()


def test_what_a_legend_leaves_out_is_counted(monkeypatch):
    seen = []
    monkeypatch.setattr(legends, "_legend", lambda entries, *rest: seen.extend(entries) or noise(5, 5))
    with_legend(noise(16, 16), [f"class {number}" for number in range(171)], palette(171))
    shown = [entry.name.text for entry in seen]
    assert shown[:-1] == [f"class {number}" for number in range(len(shown) - 1)]
    assert shown[-1] == f"and {171 - len(shown) + 1} more"


def test_no_names_no_legend():
    picture = noise(10, 10)
    np.testing.assert_array_equal(with_legend(picture, [], palette(0)), picture)


def test_side_by_side():
    first, second = noise(100, 150), noise(50, 40)
    whole = side_by_side([first, second], ["picture", "犬"])
    assert is_drawn(whole)
    np.testing.assert_array_equal(whole[-100:, :150], first)
    assert 230 <= whole.shape[1] <= 250


def test_side_by_side_needs_a_title_for_each():
    with pytest.raises(ValueError, match="1 pictures and 2 titles"):
        side_by_side([noise(4, 4)], ["a", "b"])
    with pytest.raises(ValueError, match="0 pictures"):
        side_by_side([], [])
