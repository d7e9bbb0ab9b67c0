"""Which classes of an image's list enter the head."""

import jax
import numpy as np
import pytest

from dinov3seg_jax.training.step import choose_hardest

NAMES, LISTED, SIDE = 12, 8, 4
RNG = np.random.default_rng(0)
CORRELATION = RNG.uniform(-0.1, 0.1, (2, NAMES, 2, 2, 2)).astype(np.float32)
CLASS_IDS = np.stack([RNG.permutation(NAMES)[:LISTED] for _ in range(2)]).astype(np.int32)


def label_with(*present):
    """[2, SIDE, SIDE]: the same positions in both images, and some pixels ignored."""
    return np.resize(np.array([*present, -1], np.int32), (2, SIDE, SIDE))


def named(class_ids, label):
    """Names in place of positions, -1 where ignored."""
    return np.stack([np.where(one >= 0, ids[one], -1) for ids, one in zip(np.asarray(class_ids), label, strict=True)])


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_are_present_are_kept_and_mean_the_same(seed):
    label = label_with(1, 6, 3)
    kept, shortened = choose_hardest(jax.random.key(seed), CORRELATION, CLASS_IDS, label, 4)
    assert kept.shape == (2, 4)
    np.testing.assert_array_equal(named(kept, np.asarray(shortened)), named(CLASS_IDS, label))


def test_the_name_an_image_resembles_most_comes_next():
    correlation = CORRELATION.copy()
    for image, position in enumerate((2, 7)):
        correlation[image, CLASS_IDS[image, position], 0, 0, 0] = 1.0
    for seed in range(5):
        kept, _ = choose_hardest(jax.random.key(seed), correlation, CLASS_IDS, label_with(1), 2)
        np.testing.assert_array_equal(kept, [[CLASS_IDS[0, 1], CLASS_IDS[0, 2]], [CLASS_IDS[1, 1], CLASS_IDS[1, 7]]])


def test_easy_names_are_met_too():
    others = {
        int(choose_hardest(jax.random.key(seed), CORRELATION, CLASS_IDS, label_with(1), 2)[0][0, 1])
        for seed in range(30)
    }
    assert len(others) >= 4


def test_pixels_of_classes_that_find_no_place_are_ignored():
    label = label_with(0, 1, 2)
    kept, shortened = choose_hardest(jax.random.key(0), CORRELATION, CLASS_IDS, label, 2)
    before, after = named(CLASS_IDS, label), named(kept, np.asarray(shortened))
    np.testing.assert_array_equal(after, np.where(np.isin(before, np.asarray(kept)), before, -1))
    assert (after >= 0).any()


def test_a_list_that_is_short_enough_stays_whole():
    kept, _ = choose_hardest(jax.random.key(0), CORRELATION, CLASS_IDS, label_with(0), 99)
    np.testing.assert_array_equal(np.sort(kept, axis=1), np.sort(CLASS_IDS, axis=1))
