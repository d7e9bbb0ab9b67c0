"""A class has the colour that its palette says, in every list."""

import json
from importlib import resources

import numpy as np
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.vocabularies import load_vocabulary
from dinov3seg_jax.visualize import PALETTES, class_colors, palette, palettes

NAMES = ["striped red ball", "dog", "sky", "wood", "grass"]


def colors_of(names, *arguments, **options):
    colors = class_colors(names, *arguments, **options)
    assert colors.dtype == np.uint8
    assert colors.shape == (len(names), 3)
    return dict(zip(names, map(tuple, colors.tolist()), strict=True))


@pytest.mark.parametrize(
    ("palette", "name", "color"),
    [
        ("voc", "aeroplane", (128, 0, 0)),
        ("voc", "tv/monitor", (0, 64, 128)),
        ("voc", "Potted Plant", (0, 64, 0)),
        ("voc", "background", (0, 0, 0)),
        ("ade20k", "wall", (120, 120, 120)),
        ("ade20k", "bed ", (204, 5, 255)),
        ("ade20k", "rug, carpet, carpeting", (255, 9, 92)),
        ("coco", "person", (220, 20, 60)),
        ("coco", "sky-other-merged", (70, 130, 180)),
        ("coco", "sky", (70, 130, 180)),
        ("coco_stuff", "wood", (64, 64, 0)),
        ("coco_stuff", "sky-other", (64, 224, 64)),
    ],
)
def test_published_colours(palette, name, color):
    assert colors_of(["zebra crossing", name, "a"], palette)[name] == color


def test_vocs_colours_are_its_formula():
    """Bit b of a class's number goes to bit 7 - b // 3 of red, green or blue, by b % 3."""
    for number, name in enumerate(["background", *load_vocabulary("voc_20")]):
        color = [sum((number >> 3 * place + band & 1) << 7 - place for place in range(3)) for band in range(3)]
        assert class_colors([name], "voc")[0].tolist() == color


@pytest.mark.parametrize(("table", "vocabulary"), [("ade20k", "ade_150"), ("coco_stuff", "coco_stuff_171")])
def test_a_table_has_all_classes_of_its_benchmark(table, vocabulary):
    text = resources.files("dinov3seg_jax.visualize").joinpath("colors", f"{table}.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == [name.strip() for name in load_vocabulary(vocabulary)]


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("vocabulary", ["ade_150", "coco_stuff_171"])
def test_no_two_classes_have_one_colour(palette, vocabulary):
    names = load_vocabulary(vocabulary)
    assert len(set(colors_of(names, palette).values())) == len(set(names))


@pytest.mark.parametrize("palette", ["ade20k", "coco", "coco_stuff", "voc", "by_name"])
def test_a_name_has_its_colour_in_every_list(palette):
    whole = colors_of(NAMES, palette)
    assert colors_of(NAMES[::-1], palette) == whole
    for name in NAMES:
        assert colors_of([name], palette) == {name: whole[name]}


def test_of_two_names_with_one_colour_the_later_in_the_alphabet_takes_another():
    clashing = find_clash()
    alone = [colors_of([name], "by_name")[name] for name in clashing]
    together, turned = (colors_of(names, "by_name") for names in (clashing, clashing[::-1]))
    assert alone[0] == alone[1] == together[min(clashing)] != together[max(clashing)]
    assert together == turned


def find_clash():
    seen = {}
    for number in range(2000):
        name = f"name {number}"
        color = colors_of([name], "by_name")[name]
        if color in seen:
            return [seen[color], name]
        seen[color] = name
    raise AssertionError("128 colours are enough for 2000 names")


def test_a_name_of_the_table_goes_before_one_that_only_means_the_same():
    colors = colors_of(["sky", "sky-other-merged", "sky-other"], "coco")
    assert colors["sky-other-merged"] == (70, 130, 180)
    assert len(set(colors.values())) == 3


@pytest.mark.parametrize("name", PALETTES)
def test_given_colours_go_before_all_others_and_nobody_else_has_them(name):
    usual = colors_of(NAMES, name)
    given = {"wood": usual["dog"]}
    colors = colors_of(NAMES, name, given=given)
    assert colors["wood"] == usual["dog"] != colors["dog"]
    assert {key: colors[key] for key in ("sky", "grass")} == {key: usual[key] for key in ("sky", "grass")}


def test_in_a_long_list_a_given_colour_moves_no_others_than_those_like_it():
    names = [f"name {number}" for number in range(160)]
    usual, colors = class_colors(names), class_colors(names, given={"name 7": (255, 0, 255)})
    assert colors[7].tolist() == [255, 0, 255]
    assert (usual != colors).any(axis=-1).sum() < 9
    assert len(np.unique(colors, axis=0)) == 160


def test_the_usual_palette_goes_by_the_place():
    np.testing.assert_array_equal(class_colors(NAMES), palette(5))


@pytest.mark.parametrize("name", PALETTES)
def test_no_names_have_no_colours(name):
    assert class_colors([], name).shape == (0, 3)


@pytest.mark.parametrize("name", PALETTES)
def test_colours_come_again_only_where_there_are_no_more(monkeypatch, name):
    monkeypatch.setattr(palettes, "_SLOTS", 8)
    monkeypatch.setattr(palettes, "_FIRST", 4)
    monkeypatch.setattr(palettes, "MAX_COLORS", 40)
    assert len(set(colors_of([f"name {number}" for number in range(40)], name).values())) == 40
    assert len(set(colors_of([f"name {number}" for number in range(43)], name).values())) == 40


def test_an_unknown_palette():
    with pytest.raises(UserError, match=r"no palette 'ade20' \(did you mean 'ade20k'\?\); choose one of distinct, "):
        class_colors(NAMES, "ade20")
