"""The benchmark vocabularies: complete, as published, usable as prompts, and in step with the label maps."""

import json
from importlib import resources

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.prompts import check_names, load_templates
from dinov3seg_jax.text.tokenizer import Tokenizer
from dinov3seg_jax.text.vocabularies import VOCABULARIES, load_vocabulary

COUNTS = {"coco_stuff_171": 171, "ade_150": 150, "ade_847": 847, "pc_59": 59, "pc_459": 459, "voc_20": 20}


@pytest.mark.parametrize(("name", "count"), [*COUNTS.items(), ("voc_20b", 59)])
def test_count(name, count):
    assert len(load_vocabulary(name)) == count


def test_published_strings_are_kept():
    assert load_vocabulary("ade_150")[7] == "bed "
    assert sum(", " in name for name in load_vocabulary("ade_847")) == 217
    assert load_vocabulary("voc_20b")[:20] == load_vocabulary("voc_20")
    assert sorted(load_vocabulary("voc_20b")) == sorted(load_vocabulary("pc_59"))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_names_pass_the_checks(name):
    names = load_vocabulary(name)
    assert check_names(names, Tokenizer()) == tuple(entry.strip() for entry in names)


def test_names_fit_the_longest_templates():
    check_names(load_vocabulary("ade_150"), Tokenizer(), load_templates("imagenet_80"))


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_label_maps_have_one_original_id_per_name(name, count):
    maps = json.loads((resources.files("dinov3seg_jax.data") / "label_maps.json").read_text(encoding="utf-8"))
    assert len(maps[name]["original_ids"]) == count


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'ade'.*coco_stuff_171, ade_150.*voc_20b"):
        load_vocabulary("ade")
