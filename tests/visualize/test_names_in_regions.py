"""A name stands in its own region, or nowhere."""

import numpy as np
import pytest

from dinov3seg_jax.visualize import write_names

GREY = 128


def written(labels, names):
    """Where something was written, bool [h, w]."""
    labels = np.asarray(labels)
    picture = np.full((*labels.shape, 3), GREY, np.uint8)
    return (write_names(picture, labels, names) != GREY).any(axis=-1)


def blocks(height=400, width=600):
    """A large region around a middle one, and a small one."""
    labels = np.zeros((height, width), np.int32)
    labels[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1
    labels[10:14, 10:14] = 2
    return labels


@pytest.mark.parametrize("scale", [1, 3])
def test_names_stand_in_the_large_regions_only(scale):
    labels = blocks().repeat(scale, axis=0).repeat(scale, axis=1)
    ink = written(labels, ["around", "middle", "small"])
    assert ink[labels == 0].any()
    assert ink[labels == 1].any()
    assert not ink[labels == 2].any()
    rows, columns = np.nonzero(ink & (labels == 1))
    assert abs(rows.mean() - labels.shape[0] / 2) < 8 * scale
    assert abs(columns.mean() - labels.shape[1] / 2) < 8 * scale


@pytest.mark.parametrize(("shape", "scale"), [((200, 320), 1), ((320, 200), 1), ((200, 320), 3)])
def test_no_letter_crosses_a_border(shape, scale):
    """Whatever the regions are: where only one class has a name, there is ink in that one alone."""
    rng = np.random.default_rng(shape[0])
    seeds = rng.integers(0, shape, (9, 2))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    labels = np.linalg.norm(grid[:, :, None] - seeds, axis=-1).argmin(axis=-1) % 5
    labels = labels.repeat(scale, axis=0).repeat(scale, axis=1)
    names = ["a name", "kite", "field", "road", "sky"]
    assert written(labels, names).any()
    for label in range(5):
        ink = written(labels, [name if place == label else "" for place, name in enumerate(names)])
        assert not ink[labels != label].any()


def test_a_thin_line_through_a_region_is_a_border():
    labels = np.zeros((600, 1900), np.int32)
    labels[:, 950] = 1  # lost, if the first of three pixels were looked at
    ink = written(labels, ["left and right", "thin"])
    assert ink.any()
    assert not ink[:, 944:957].any()


def test_a_name_that_does_not_fit_is_not_written():
    labels = blocks()
    assert not written(labels, ["", "a name that is longer than the region in the middle is wide " * 2, ""]).any()


def test_in_a_long_region_a_name_stands_in_the_middle():
    columns = np.nonzero(written(np.zeros((60, 800), np.int32), ["sky"]))[1]
    assert abs(columns.mean() - 400) < 20


def test_what_has_no_label_has_no_name():
    assert not written(np.full((300, 400), -1), ["sky"]).any()
    assert not written(np.zeros((3, 1), np.int32), ["sky"]).any()


def test_a_class_is_named_in_its_largest_regions():
    labels = np.ones((600, 900), np.int32)
    for column in range(6):
        labels[40 : 140 + 10 * column, 20 + 145 * column : 150 + 145 * column] = 0
    ink = written(labels, ["dog", ""])
    assert [bool(ink[:, 20 + 145 * column : 150 + 145 * column].any()) for column in range(6)] == [False] * 2 + [
        True
    ] * 4
