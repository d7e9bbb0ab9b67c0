"""Windows cover everything, and their mean is that of a plain loop."""

import numpy as np
import pytest

from dinov3seg_jax.inference.views.windows import coverage, gather, merge, plan_windows, window_size


def test_the_papers_grid():
    starts = [0, 128, 256]
    assert plan_windows(640, 640, 384, 128).tolist() == [[row, column] for row in starts for column in starts]


def test_cat_segs_grid():
    assert plan_windows(640, 640, 384, 256).tolist() == [[0, 0], [0, 256], [256, 0], [256, 256]]


def test_the_last_window_is_shifted_back_to_the_edge():
    assert plan_windows(10, 7, 4, 3).tolist() == [[0, 0], [0, 3], [3, 0], [3, 3], [6, 0], [6, 3]]
    assert plan_windows(11, 4, 4, 3).tolist() == [[0, 0], [3, 0], [6, 0], [7, 0]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 4), (4, 3), (4, 4)])
def test_one_window_where_the_picture_is_no_larger(height, width):
    assert plan_windows(height, width, 4, 2).tolist() == [[0, 0]]
    assert window_size(height, width, 4) == (height, width)


def test_one_side_shorter_than_the_window():
    assert window_size(3, 9, 4) == (3, 4)
    assert plan_windows(3, 9, 4, 4).tolist() == [[0, 0], [0, 4], [0, 5]]


@pytest.mark.parametrize("height", [1, 4, 5, 9, 17])
@pytest.mark.parametrize("stride", [1, 3, 4])
def test_everything_is_covered_by_different_windows(height, stride):
    corners = plan_windows(height, 13, 4, stride)
    assert coverage(corners, window_size(height, 13, 4), (height, 13)).min() >= 1
    assert len({tuple(corner) for corner in corners.tolist()}) == len(corners)


@pytest.mark.parametrize("arguments", [(8, 8, 4, 5), (8, 8, 4, 0), (0, 8, 4, 4)])
def test_plans_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="cannot cover"):
        plan_windows(*arguments)


SIZES = [(9, 11, 4, 3), (8, 8, 4, 4), (3, 10, 4, 2), (5, 5, 5, 1)]


@pytest.mark.parametrize(("height", "width", "window", "stride"), SIZES)
def test_gather_cuts_what_slices_cut(height, width, window, stride):
    images = np.random.default_rng(0).random((2, height, width, 3), np.float32)
    corners, (h, w) = plan_windows(height, width, window, stride), window_size(height, width, window)
    cut = [image[row : row + h, column : column + w] for image in images for row, column in corners]
    np.testing.assert_array_equal(gather(images, corners, (h, w)), np.stack(cut))


@pytest.mark.parametrize(("height", "width", "window", "stride"), SIZES)
def test_merge_is_the_mean_of_a_plain_loop(height, width, window, stride):
    corners, (h, w) = plan_windows(height, width, window, stride), window_size(height, width, window)
    windows = np.random.default_rng(1).random((2, len(corners), h, w, 3), np.float32)
    expected = np.empty((2, height, width, 3))
    for row in range(height):
        for column in range(width):
            over = [
                windows[:, index, row - top, column - left]
                for index, (top, left) in enumerate(corners)
                if 0 <= row - top < h and 0 <= column - left < w
            ]
            expected[:, row, column] = np.mean(over, axis=0)
    merged = merge(windows.reshape(-1, h, w, 3), corners, (height, width))
    np.testing.assert_allclose(merged, expected, rtol=1e-6)


def test_merging_what_was_gathered_changes_nothing():
    images = np.random.default_rng(2).random((3, 7, 9, 2), np.float32)
    corners = plan_windows(7, 9, 4, 2)
    np.testing.assert_allclose(merge(gather(images, corners, (4, 4)), corners, (7, 9)), images, rtol=1e-6)
