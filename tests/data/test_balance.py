"""Rare classes: how often pictures come, and what classes count."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import DataConfig, DatasetConfig
from dinov3seg_jax.data.balance import count_classes, for_rare_classes, repeats, weights
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.pipeline import train_iterator
from dinov3seg_jax.errors import UserError

# Of the classes with ids 3, 5 and 9; 0 is ignored. The second occurs in one picture of four, the third in none.
MASKS = [[[3, 3, 0, 0]], [[3, 3, 3, 3]], [[3, 0, 0, 0]], [[5, 5, 0, 3]]]
PIXELS = [[2, 0, 0], [4, 0, 0], [1, 0, 0], [1, 2, 0]]
DATA = DataConfig(crop_size=4, short_side=(4, 4), flip=False, color_jitter=False)


@pytest.fixture
def dataset(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for number, mask in enumerate(MASKS):
        Image.new("RGB", (4, 1), (number, 0, 0)).save(tmp_path / "images/train" / f"{number}.png")
        Image.fromarray(np.array(mask, np.uint8)).save(tmp_path / "masks/train" / f"{number}.png")
    listed = ", ".join(f'{{"id": {number}, "name": "class {number}"}}' for number in (3, 5, 9))
    (tmp_path / "classes.json").write_text(f"[{listed}]")
    return open_dataset(DatasetConfig(name="folder", root=str(tmp_path)))


def test_pixels_are_counted_by_picture_and_class(dataset):
    np.testing.assert_array_equal(count_classes(dataset.source, 3), PIXELS)


def test_a_picture_comes_as_often_as_its_rarest_class_asks(dataset):
    shows = np.array(PIXELS) > 0
    np.testing.assert_array_equal(repeats(shows, 0.0), [1, 1, 1, 1])
    np.testing.assert_array_equal(repeats(shows, 0.5), [1, 1, 1, 2])  # sqrt of 4 / 1
    np.testing.assert_array_equal(repeats(shows, 1.0), [1, 1, 1, 4])
    np.testing.assert_array_equal(repeats(np.zeros((2, 3), bool), 1.0), [1, 1])


def test_fractions_are_shared_out():
    shows = np.zeros((90, 2), bool)
    shows[:60, 0] = shows[60:, 1] = True  # the second is to come sqrt(2) times as often
    found = repeats(shows, 0.5)
    assert set(found[60:].tolist()) == {1, 2}
    assert (found[:60] == 1).all()
    assert abs(found[60:].sum() - 30 * 2**0.5) < 1


def test_weights_follow_the_pixels_and_have_the_mean_1():
    pixels = np.array([400, 100, 0, 25])
    np.testing.assert_allclose(weights(pixels, "inverse_sqrt"), np.array([1, 2, 0, 4]) * 3 / 7 + [0, 0, 1, 0])
    np.testing.assert_allclose(weights(pixels, "inverse"), np.array([1, 4, 0, 16]) / 7 + [0, 0, 1, 0])
    assert weights(np.array([10**9, *[1] * 50]), "inverse")[0] == 0.1
    assert weights(np.array([*[10**9] * 50, 1]), "inverse")[-1] == 10
    np.testing.assert_array_equal(weights(np.array([0, 0]), "inverse"), [1, 1])


def test_the_stream_has_rare_pictures_more_often_and_weights_beside_the_classes(dataset):
    weighed = for_rare_classes(dataset, 1.0, "inverse")
    assert weighed.weights == pytest.approx((0.4, 1.6, 1.0))  # of 8 and 2 pixels
    data = dataclasses.replace(DATA, classes_per_image=2)
    stream = train_iterator(weighed, data, 1, seed=3)
    batches = list(itertools.islice(stream, 14))
    pictures = [int(batch["image"][0, 0, 0, 0]) for batch in batches]
    for epoch in (pictures[:7], pictures[7:]):
        np.testing.assert_array_equal(np.bincount(epoch), [1, 1, 1, 4])
    for batch in batches:
        assert batch["weights"].dtype == np.float32
        np.testing.assert_allclose(batch["weights"][0], np.array(weighed.weights)[batch["class_ids"][0]])
    again = train_iterator(for_rare_classes(dataset, 1.0, "inverse"), data, 1, seed=3, start=5)
    for batch in batches[5:]:
        went_on = next(again)
        for name in batch:
            np.testing.assert_array_equal(went_on[name], batch[name], err_msg=name)


def test_where_nothing_is_asked_for_nothing_changes(dataset):
    assert for_rare_classes(dataset, 0.0, "none") is dataset
    assert "weights" not in next(train_iterator(dataset, DATA, 1, seed=0))


def test_a_data_set_without_masks_on_disk_is_refused():
    with pytest.raises(UserError, match="this data set has none on disk"):
        for_rare_classes(open_dataset(DatasetConfig()), 0.5, "none")
