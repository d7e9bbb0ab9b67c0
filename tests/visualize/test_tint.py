"""A tint and its contours: what must hold for every label map."""

import numpy as np
import pytest

from dinov3seg_jax.visualize import overlay, palette

HALVES = np.repeat(np.array([[0, 1]], np.int32), 20, axis=0).repeat(20, axis=1)
COLORS = np.array([[200, 100, 0], [0, 100, 200]], np.uint8)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(labels):
    return np.full((*labels.shape, 3), 100, np.uint8)


def test_overlay_blends_inside_and_darkens_the_border():
    picture = overlay(grey(HALVES), HALVES, COLORS, alpha=0.5)
    assert picture[5, 5].tolist() == [150, 100, 50]
    assert picture[5, 35].tolist() == [50, 100, 150]
    assert picture[5, 19].tolist() == [90, 45, 0]
    assert picture[5, 20].tolist() == [50, 100, 150]


def test_without_contours_there_is_the_tint_alone():
    picture = overlay(grey(HALVES), HALVES, COLORS, alpha=0.5, contours="off")
    assert picture[5, 19].tolist() == [150, 100, 50]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2


def test_where_there_is_no_tint_a_contour_has_its_full_colour():
    picture = overlay(grey(HALVES), HALVES, COLORS, alpha=0)
    assert picture[5, 19].tolist() == [200, 100, 0]
    assert picture[5, 18].tolist() == [100, 100, 100]


def test_contours_alone_show_both_colours_within_a_dark_rim():
    row = overlay(grey(HALVES), HALVES, COLORS, contours="only")[5]
    assert row[16].tolist() == row[23].tolist() == [100, 100, 100]
    assert row[17].tolist() == row[22].tolist() == [24, 24, 24]
    assert row[18].tolist() == row[19].tolist() == [200, 100, 0]
    assert row[20].tolist() == row[21].tolist() == [0, 100, 200]


@pytest.mark.parametrize("contours", ["thin", "off", "only"])
def test_overlay_leaves_unlabelled_pixels(contours):
    image = noise(30, 40)
    labels = np.full((30, 40), -1)
    np.testing.assert_array_equal(overlay(image, labels, palette(3), contours=contours), image)
    labels[10:20, 10:20] = 2
    picture = overlay(image, labels, palette(3), contours=contours)
    np.testing.assert_array_equal(picture[labels == -1], image[labels == -1])
    assert (picture[10, 10:20] != image[10, 10:20]).any(axis=-1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_overlay_alpha_ends(dtype):
    image = noise(9, 7)
    labels = np.ones((9, 7), dtype)
    np.testing.assert_array_equal(overlay(image, labels, palette(2), alpha=0), image)
    np.testing.assert_array_equal(
        overlay(image, labels, palette(2), alpha=1), np.broadcast_to(palette(2)[1], image.shape)
    )


def test_overlay_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        overlay(noise(4, 5), np.zeros((5, 4), int), palette(1))
    with pytest.raises(ValueError, match="float32"):
        overlay(noise(4, 5).astype(np.float32), np.zeros((4, 5), int), palette(1))
    with pytest.raises(ValueError, match=r"colours for 0\.\.0"):
        overlay(noise(4, 5), np.full((4, 5), 1), palette(1))
