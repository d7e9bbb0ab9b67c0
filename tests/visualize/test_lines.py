"""A line of text is as wide as it says, and ends where it is cut."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dinov3seg_jax import fonts
from dinov3seg_jax.visualize.lines import Line

BLACK, RED = (0, 0, 0), (255, 0, 0)


def drawn(line, halo=None, left=20):
    canvas = Image.new("RGB", (600, 60), (255, 255, 255))
    line.draw(ImageDraw.Draw(canvas), left, 30, BLACK, halo)
    return np.array(canvas)


def columns(picture):
    return np.flatnonzero((picture.min(axis=-1) < 128).any(axis=0))


@pytest.mark.parametrize("text", ["dog", "two words", "собака", "red dog كلب بني 狗"])
def test_a_line_is_as_wide_as_it_says(text):
    line = Line(text, 24)
    ink = columns(drawn(line))
    assert 18 <= ink[0] <= 24
    assert line.width - 8 <= ink[-1] - ink[0] <= line.width + 2


def test_capitals_stand_in_the_middle():
    rows = np.flatnonzero((drawn(Line("HEX", 30)).min(axis=-1) < 128).any(axis=1))
    assert abs((rows[0] + rows[-1]) / 2 - 30) <= 1.5


def test_a_halo_is_around_the_letters():
    picture = drawn(Line("dog", 24), halo=RED)
    red = (picture == RED).all(axis=-1)
    assert red.any()
    black = (picture.max(axis=-1) < 60).any(axis=0)
    assert np.flatnonzero(black)[0] > np.flatnonzero(red.any(axis=0))[0]


@pytest.mark.parametrize("width", [0, 30, 100, 5000])
def test_a_line_is_cut_to_a_width(width):
    line = Line("a long name of a class", 20)
    cut = line.fitted(width)
    assert cut.width <= width
    assert cut == line if width == 5000 else cut.text in ("", "a...") or cut.text.endswith("...")
    if width == 100:
        assert Line(line.text[: len(cut.text) - 2] + "...", 20).width > 100  # with one letter more


def test_an_accent_is_not_cut_from_its_letter():
    line = Line("ọ̣̣" * 30, 20)
    assert fonts.clusters(line.fitted(100).text.removesuffix("..."))[-1] == fonts.clusters(fonts.as_line(line.text))[0]


def test_without_shaping_what_is_read_from_the_right_still_stands_there(monkeypatch):
    """As where Pillow finds no libfribidi."""
    seen = []
    monkeypatch.setattr(fonts, "runs", lambda text: [fonts.Run("ab(c", None, leftwards=True)])
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, *rest, **options: seen.append(text))
    Line("any text of its own", 20).draw(ImageDraw.Draw(Image.new("RGB", (9, 9))), 0, 0, BLACK)
    assert seen == ["c)ba"]
