"""Colours differ as promised, for all eyes."""

import numpy as np
import pytest

from dinov3seg_jax.visualize.distinct import COLORBLIND_ENDS, MAX_COLORS, colorblind, palette, seen_by_all


def nearest(colors):
    """The least distance in CIELAB of two colours, for the eyes that see least of it."""
    seen = seen_by_all(colors)
    distance = np.sqrt(((seen[:, :, None] - seen[:, None]) ** 2).sum(axis=-1)).min(axis=0)
    return distance[~np.eye(len(colors), dtype=bool)].min()


def test_palette_colours_differ_and_never_vanish():
    colors = palette(512)
    assert colors.shape == (512, 3)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 512
    assert colors.max(axis=1).min() > 60
    assert np.ptp(colors.astype(int), axis=1).min() > 20


def test_first_colours_are_very_different():
    colors = palette(10).astype(int)
    distance = np.abs(colors[:, None] - colors[None]).max(axis=-1)
    assert distance[~np.eye(10, dtype=bool)].min() > 70


@pytest.mark.parametrize("make", [palette, colorblind])
def test_a_palette_is_stable(make):
    np.testing.assert_array_equal(make(50)[:7], make(7))
    make(7)[:] = 0
    assert make(7).any()
    assert make(0).shape == (0, 3)


@pytest.mark.parametrize("make", [palette, colorblind])
@pytest.mark.parametrize("count", [-1, MAX_COLORS + 1])
def test_palette_range(make, count):
    with pytest.raises(ValueError, match="0 to 4096"):
        make(count)


def test_white_is_white_for_all_eyes():
    np.testing.assert_allclose(seen_by_all(np.full((1, 3), 255, np.uint8)), np.tile([100.0, 0, 0], (4, 1, 1)), atol=0.1)


def test_some_eyes_take_red_for_green():
    pair = np.array([[150, 75, 0], [85, 107, 47]], np.uint8)  # brown and olive
    normal, without_red, *_ = np.sqrt(((seen_by_all(pair)[:, 0] - seen_by_all(pair)[:, 1]) ** 2).sum(axis=-1))
    assert without_red < normal / 2


def test_the_palette_for_colour_blind_eyes_ends_where_it_says():
    chosen_by_people = nearest(colorblind(7))
    assert nearest(colorblind(COLORBLIND_ENDS)) == chosen_by_people > 16
    assert nearest(colorblind(COLORBLIND_ENDS + 4)) < chosen_by_people
    assert nearest(palette(COLORBLIND_ENDS)) < 4  # so the usual palette is none


def test_it_has_colours_for_long_lists_too():
    assert len(np.unique(colorblind(100), axis=0)) == 100
