"""OpenCV's resize, by numbers worked out by hand from its integers."""

import numpy as np

from dinov3seg_jax.inference.views.opencv_resize import resize_as_opencv


def grey(rows):
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1)


def test_a_half_is_the_rounded_mean_of_four():
    np.testing.assert_array_equal(resize_as_opencv(grey([[0, 1], [0, 1]]), 1, 1), grey([[1]]))


def test_columns_at_a_quarter_and_held_at_the_edges():
    np.testing.assert_array_equal(resize_as_opencv(grey([[0, 100]]), 1, 4), grey([[0, 25, 75, 100]]))


def test_the_same_size_changes_nothing():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(resize_as_opencv(image, 16, 16), image)


def test_a_row_beyond_the_edge_is_rounded_in_two_shares():
    """255 = 16320 / 64: shares of 1/4 and 3/4 of the first row, each cut to a whole number, still add up."""
    first = resize_as_opencv(grey([[3], [251]]), 4, 1)[:, 0, 0]
    sums = [(3 * 2048 >> 4) * share >> 16 for share in (512, 1536)]
    assert first[0] == sum(sums) + 2 >> 2


def test_no_antialiasing():
    """Of a stripe in every fourth column a reduction to a quarter sees the two columns in the middle alone."""
    image = grey([[255, 0, 0, 0] * 4] * 4)
    assert resize_as_opencv(image, 1, 4).max() == 0
