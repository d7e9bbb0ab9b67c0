"""A class list says the colours of what is answered."""

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists import ClassList
from dinov3seg_jax.text.class_lists.asked import BACKGROUND_COLOR, UNKNOWN_COLOR
from dinov3seg_jax.visualize import palette

NAMES = ["dog", "sheep", "sky"]


def colors(names=NAMES, **options):
    asked = ClassList.of(names, **options)
    return dict(zip(asked.names, map(tuple, asked.colors.tolist()), strict=True))


def test_colours_are_those_of_the_palette():
    assert list(colors().values()) == list(map(tuple, palette(3).tolist()))
    assert colors(palette="voc")["dog"] == (64, 0, 128)
    assert colors(["sky", "dog"], palette="voc")["dog"] == (64, 0, 128)


def test_a_colour_of_the_list_goes_first(tmp_path):
    (tmp_path / "names.csv").write_text("name,color\ndog,#010203\nsheep,\nsky,\n")
    found = colors(tmp_path / "names.csv", palette="voc")
    assert found["dog"] == (1, 2, 3)
    assert found["sheep"] == (128, 64, 0)


def test_what_is_none_of_the_classes_is_grey_in_every_palette():
    found = colors(palette="voc", background="grass", min_confidence=0.5)
    assert found["background"] == BACKGROUND_COLOR
    assert found["unknown"] == UNKNOWN_COLOR
    assert len(set(found.values())) == 5


def test_a_palette_is_part_of_the_question_unless_it_is_the_usual_one():
    assert ClassList.of(NAMES).question()["palette"] is None
    assert ClassList.of(NAMES, palette="voc").question()["palette"] == "voc"


@pytest.mark.parametrize("name", ["vocc", "", None, 3])
def test_a_palette_that_is_none(name):
    with pytest.raises(UserError, match="there is no palette '.*; choose one of distinct, colorblind, by_name, ade20k"):
        ClassList.of(NAMES, palette=name)
