"""Pictures of a segmentation: what must hold for any size, any number of classes and any name."""

import numpy as np
import pytest

from dinov3seg_jax.visualize import MAX_COLORS, legend, overlay, palette, side_by_side, with_legend

NAMES = ["red circle", "grass", "собака", "犬", "कुत्ता", "كلب", "🐕", "two\nlines", "\ud800", "", "long " * 60]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def is_drawn(picture):
    return picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3 and picture.min() < 100


def test_palette_colours_differ_and_never_vanish():
    colors = palette(847)
    assert colors.shape == (847, 3)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 847
    assert colors.max(axis=1).min() > 60
    assert np.ptp(colors.astype(int), axis=1).min() > 20


def test_first_colours_are_very_different():
    colors = palette(10).astype(int)
    distance = np.abs(colors[:, None] - colors[None]).max(axis=-1)
    assert distance[~np.eye(10, dtype=bool)].min() > 70


def test_palette_is_stable():
    np.testing.assert_array_equal(palette(50)[:7], palette(7))
    palette(7)[:] = 0
    assert palette(7).any()
    assert palette(0).shape == (0, 3)


@pytest.mark.parametrize("count", [-1, MAX_COLORS + 1])
def test_palette_range(count):
    with pytest.raises(ValueError, match="0 to 4096"):
        palette(count)


def test_overlay_blends_inside_and_darkens_the_border():
    labels = np.zeros((20, 20), np.int32)
    labels[:, 10:] = 1
    colors = np.array([[200, 100, 0], [0, 100, 200]], np.uint8)
    picture = overlay(np.full((20, 20, 3), 100, np.uint8), labels, colors, alpha=0.5)
    assert picture[5, 5].tolist() == [150, 100, 50]
    assert picture[5, 15].tolist() == [50, 100, 150]
    assert picture[5, 9].tolist() == [90, 45, 0]
    assert picture[5, 10].tolist() == [50, 100, 150]


def test_overlay_leaves_unlabelled_pixels():
    image = noise(30, 40)
    labels = np.full((30, 40), -1)
    np.testing.assert_array_equal(overlay(image, labels, palette(3)), image)
    labels[10:20, 10:20] = 2
    np.testing.assert_array_equal(overlay(image, labels, palette(3))[labels == -1], image[labels == -1])


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


@pytest.mark.parametrize("width", [1, 16, 300, 6000])
def test_legend_of_any_width_and_script(width):
    picture = legend(NAMES, palette(len(NAMES)), width)
    assert picture.shape[1:] == (width, 3)
    assert width < 50 or is_drawn(picture)


def test_latin_letters_lose_their_accents_before_they_are_drawn():
    names = ("Straße, tiếng Ål, łąka", "Strasse, tieng Al, laka")
    accented, plain = (legend([name], palette(1), 300) for name in names)
    np.testing.assert_array_equal(accented, plain)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (1, 400), (400, 1), (480, 640), (200, 3000)])
@pytest.mark.parametrize("count", [1, 3, len(NAMES)])
def test_with_legend_keeps_the_picture(height, width, count):
    picture = noise(height, width)
    whole = with_legend(picture, NAMES[:count], palette(count))
    np.testing.assert_array_equal(whole[:height, :width], picture)
    assert whole.shape[0] > height or whole.shape[1] > width
    for color in palette(count):
        assert (whole == color).all(axis=-1).sum() > 20


def test_few_names_stand_beside_and_many_below():
    picture = noise(400, 600)
    assert with_legend(picture, ["sky", "tree"], palette(2)).shape[0] == 400
    many = [f"class {number}" for number in range(171)]
    assert with_legend(picture, many, palette(171)).shape[1] == 600


def test_no_names_no_legend():
    picture = noise(10, 10)
    np.testing.assert_array_equal(with_legend(picture, [], palette(0)), picture)


def test_side_by_side():
    first, second = noise(100, 150), noise(50, 40)
    whole = side_by_side([first, second], ["picture", "犬"])
    assert is_drawn(whole)
    np.testing.assert_array_equal(whole[-100:, :150], first)
    assert 230 <= whole.shape[1] <= 250


def test_side_by_side_needs_a_title_for_each():
    with pytest.raises(ValueError, match="1 pictures and 2 titles"):
        side_by_side([noise(4, 4)], ["a", "b"])
    with pytest.raises(ValueError, match="0 pictures"):
        side_by_side([], [])
