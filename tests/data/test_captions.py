"""Captions name what an image shows, and only that."""

import dataclasses
import pickle

import numpy as np
import pytest

from dinov3seg_jax.config import DataConfig, DatasetConfig
from dinov3seg_jax.data.captions import LEAST_SHARE, MOST_NAMES, Captions, caption
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.pipeline import train_iterator
from dinov3seg_jax.models.presets import NANO
from dinov3seg_jax.text.tokenizer import END_ID, Tokenizer

NAMES = ("grass", "red ball", "blue ring, a toy", "box", "{}")


def read(rows):
    """Of token ids, the texts that these captions can be."""
    known = {tuple(Tokenizer().encode(word)): word for word in ("grass", "red ball", "blue ring", "box")}
    ids = [int(token) for token in rows if token]
    return {
        word
        for tokens, word in known.items()
        if any(tuple(ids[i : i + len(tokens)]) == tokens for i in range(len(ids)))
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "A photo of the scene"),
        (("grass",), "A photo of a grass in the scene"),
        (("red ball", "box"), "A photo of a red ball and a box in the scene"),
        (("blue ring, a toy", "box", "{}"), "A photo of a blue ring, a box and a {} in the scene"),
    ],
)
def test_a_caption_is_the_names_in_the_papers_prompt(names, expected):
    assert caption(names) == expected


def test_half_of_the_captions_name_all_that_shows_and_none_names_what_does_not():
    label = np.zeros((30, 30), np.int32)
    label[:5], label[5:10], label[0, 0] = 1, -1, 3  # one pixel of the box: less than who writes would see
    assert LEAST_SHARE * label.size > 1
    write, rng = Captions(NAMES, NANO), np.random.default_rng(0)
    told = [read(write(label, rng)) for _ in range(200)]
    assert {frozenset(names) for names in told} == {
        frozenset({"grass", "red ball"}),
        frozenset({"grass"}),
        frozenset({"red ball"}),
    }
    # Half name everything, and of the others, which name one or two of the two, half do so too.
    assert np.mean([len(names) == 2 for names in told]) == pytest.approx(0.75, abs=0.1)


def test_an_image_without_labels_has_a_caption_too():
    rows = Captions(NAMES, NANO)(np.full((8, 8), -1, np.int32), np.random.default_rng(0))
    assert read(rows) == set()
    assert END_ID in rows


def test_all_captions_are_as_long_as_the_longest_can_be():
    names = tuple(f"{'very ' * (i % 3)}striped ball of kind {chr(97 + i)}" for i in range(12))
    write = Captions(names, NANO)
    label = np.arange(144, dtype=np.int32).reshape(12, 12) % 12
    rows = [pickle.loads(pickle.dumps(write))(label, np.random.default_rng(seed)) for seed in range(20)]
    assert {row.shape for row in rows} == {(write.length,)}
    assert all(END_ID in row for row in rows)
    assert max(np.count_nonzero(row) for row in rows) > write.length - MOST_NAMES
    short = dataclasses.replace(NANO, text=dataclasses.replace(NANO.text, context_length=16))
    assert Captions(names, short)(label, np.random.default_rng(0)).shape == (16,)


def test_captions_change_nothing_else_of_a_batch():
    data = DataConfig(train=DatasetConfig(image_size=48), crop_size=32, short_side=(32, 48))
    dataset = open_dataset(data.train)
    with_them, without = (
        next(train_iterator(dataset, data, 4, 0, captions=captions))
        for captions in (Captions(dataset.classes, NANO), None)
    )
    assert with_them.pop("caption").shape == (4, Captions(dataset.classes, NANO).length)
    assert with_them.keys() == without.keys()
    for name, array in without.items():
        np.testing.assert_array_equal(with_them[name], array)
