"""Regions and their run lengths against slow, obvious ones."""

import numpy as np
import pytest
from scipy import ndimage

from dinov3seg_jax.formats.regions import find_regions
from dinov3seg_jax.formats.runs import Runs, counts_of
from tests.formats.maps import MAPS, RNG


def reference(labels):
    """Masks of the regions, class by class."""
    for index in np.unique(labels):
        found, count = ndimage.label(labels == index)
        yield from ((index, found == number) for number in range(1, count + 1))


@pytest.mark.parametrize("name", MAPS)
def test_regions(name):
    labels = MAPS[name]
    confidence = RNG.random(labels.shape)
    regions = find_regions(labels, confidence)
    expected = list(reference(labels))
    assert len(regions.areas) == len(expected)
    boxes = regions.boxes()
    for index, mask in expected:
        (number,) = np.unique(regions.ids[mask])
        np.testing.assert_array_equal(regions.ids == number, mask)
        assert regions.classes[number] == index
        assert regions.areas[number] == mask.sum()
        assert regions.confidences()[number] == pytest.approx(confidence[mask].mean())
        rows, columns = np.nonzero(mask)
        assert boxes[number].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_small_kinds_of_labels():
    """As they lie on disk."""
    labels = MAPS["noise"]
    for kind in (np.int8, np.int16, np.int32):
        regions = find_regions(labels.astype(kind), np.ones(labels.shape, np.float32))
        np.testing.assert_array_equal(regions.classes[regions.ids], labels)


def test_which_are_kept():
    regions = find_regions(np.array([[0, 0, 0, 1, 1, -1, 0, 2]]), np.ones((1, 8)))
    kept = regions.kept(np.array([2, 3, 1]))
    assert regions.classes[kept].tolist() == [0, 2]
    assert regions.areas[kept].tolist() == [3, 1]


@pytest.mark.parametrize("name", [name for name in MAPS if name != "checkerboard"])
@pytest.mark.parametrize("turned", [False, True])
def test_runs(name, turned):
    ids = find_regions(MAPS[name], np.ones(MAPS[name].shape)).ids
    ids = ids.T if turned else ids
    count = int(ids.max()) + 1
    whole, split = Runs(ids, count), Runs(ids, count, split=True)
    for region in range(count):
        mask = (ids == region).ravel()
        counts = counts_of(*whole[region], mask.size)
        np.testing.assert_array_equal(np.repeat(np.arange(len(counts)) % 2 == 1, counts), mask)
        assert all(counts[1:])
        assert counts == counts_of(*split[region], mask.size)
        starts, lengths = split[region]
        assert (starts // ids.shape[1] == (starts + lengths - 1) // ids.shape[1]).all()


def test_a_region_without_pixels():
    runs = Runs(np.array([[0, 2]]), 3)
    assert counts_of(*runs[1], 2) == [2]
