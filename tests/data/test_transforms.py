"""Augmentation against plain references."""

import colorsys

import numpy as np
import pytest

from dinov3seg_jax.data import transforms


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def label(rng):
    return rng.integers(-1, 5, (40, 60), dtype=np.int32)


class Always:
    """A generator whose coins all come up, or all stay down, and whose numbers are given."""

    def __init__(self, coin: float, numbers: list[float] = ()):
        self._coin, self._numbers = coin, iter(numbers)

    def random(self) -> float:
        return self._coin

    def uniform(self, low: float, high: float) -> float:
        number = next(self._numbers)
        assert low <= number <= high
        return number

    def integers(self, low: int, high: int) -> int:
        return int(self.uniform(low, high - 1))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((40, 60), (20, 30)), ((60, 40), (30, 20)), ((41, 60), (20, 29)), ((40, 400), (7, 69)), ((10, 15), (20, 30))],
)
def test_resize_keeps_the_aspect_ratio_and_caps_the_long_side(rng, size, expected):
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = rng.integers(-1, 3, size, dtype=np.int32) * 7
    resized, nearest = transforms.resize_short_side(image, label, 20)
    assert resized.shape == (*expected, 3)
    assert resized.dtype == np.uint8
    assert nearest.shape == expected
    assert nearest.dtype == np.int32
    assert set(np.unique(nearest)) <= set(np.unique(label))


def test_the_cap_is_detectron2s_at_384():
    image, label = np.zeros((100, 1000, 3), np.uint8), np.zeros((100, 1000), np.int32)
    assert transforms.resize_short_side(image, label, 384)[1].shape == (133, 1333)


def test_nearest_label_takes_the_pixel_under_the_centre(label):
    _, resized = transforms.resize_short_side(np.zeros((40, 60, 3), np.uint8), label, 20)
    np.testing.assert_array_equal(resized, label[1::2, 1::2])


@pytest.mark.parametrize("size", [(60, 80), (97, 64), (40, 127)])
@pytest.mark.parametrize("short_side", [31, 50, 200])
def test_image_and_label_do_not_drift_apart(size, short_side):
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    image = 2 * np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)  # two levels a pixel
    label = (rows * width + columns).astype(np.int32)  # each pixel's place, which the nearest keeps
    border = 2 * max(1, min(size) / short_side)  # where the weights of the image are cut off
    compared = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pair = transforms.resize_short_side(image, label, short_side)
        pair = transforms.random_flip(*transforms.random_crop(*pair, 64, rng), rng)
        shown, place = transforms.pad(*pair, 64)
        assert shown.shape[:2] == place.shape == (64, 64)
        x, y = place % width, place // width
        inside = (place != -1) & (np.minimum(x, width - 1 - x) > border) & (np.minimum(y, height - 1 - y) > border)
        away = shown[..., :2] - 2.0 * np.stack([x, y], axis=-1)
        assert np.abs(away[inside]).max() <= 1.5  # half a pixel to the nearest, half a level of rounding
        compared += inside.sum()
    assert compared > 2000


def test_crop_moves_image_and_label_together_and_reaches_every_place(rng):
    label = np.arange(5 * 6, dtype=np.int32).reshape(5, 6)
    image = np.repeat(label[..., None], 3, axis=-1).astype(np.uint8)
    corners = set()
    for _ in range(200):
        cropped, cropped_label = transforms.random_crop(image, label, 4, rng)
        assert cropped_label.shape == (4, 4)
        np.testing.assert_array_equal(cropped[..., 0], cropped_label)
        corners.add(int(cropped_label[0, 0]))
    assert corners == {0, 1, 2, 6, 7, 8}


def test_padding_is_grey_and_ignored_at_the_right_and_bottom(rng, image, label):
    cropped = transforms.random_crop(image, label, 50, rng)
    padded, padded_label = transforms.pad(*cropped, 50)
    assert padded.shape == (50, 50, 3)
    assert padded_label.shape == (50, 50)
    np.testing.assert_array_equal(padded[:40], cropped[0])
    assert (padded[40:] == 128).all()
    assert (padded_label[40:] == -1).all()
    assert padded.dtype == np.uint8
    assert padded_label.dtype == np.int32


def test_flip_mirrors_both_half_of_the_time(rng, image, label):
    flipped = 0
    for _ in range(200):
        new, new_label = transforms.random_flip(image, label, rng)
        if new is not image:
            flipped += 1
            np.testing.assert_array_equal(new, image[:, ::-1])
            np.testing.assert_array_equal(new_label, label[:, ::-1])
    assert 70 < flipped < 130


def _slow_hsv(pixel: np.ndarray) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    return hue * 180, saturation * 255, value * 255


def test_hsv_against_the_standard_library(image):
    greys = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[:, None, None], 3, axis=-1)
    for picture in (image, greys, np.eye(3, dtype=np.uint8)[None] * 255):
        hue, saturation, value = (plane.astype(float) for plane in transforms.rgb_to_hsv(picture))
        expected = np.apply_along_axis(_slow_hsv, -1, picture.astype(float))
        away = np.abs(hue - expected[..., 0])
        assert np.minimum(away, 180 - away).max() <= 0.5001
        assert hue.max() < 180
        assert np.abs(saturation - expected[..., 1]).max() <= 0.5001
        np.testing.assert_allclose(value, expected[..., 2], atol=1e-9)


def test_rgb_of_hsv_against_the_standard_library(rng):
    hue = rng.integers(0, 180, 2000, dtype=np.uint8)
    saturation, value = rng.integers(0, 256, (2, 2000), dtype=np.uint8)
    expected = [colorsys.hsv_to_rgb(h / 180, s / 255, v / 255) for h, s, v in zip(hue, saturation, value, strict=True)]
    actual = transforms.hsv_to_rgb(hue, saturation, value).astype(float)
    assert np.abs(actual - 255 * np.array(expected)).max() <= 0.501


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0.0), (1.5, 0.0), (1.0, 31.7), (1.0, -31.7)])
def test_levels_are_clipped_and_cut(image, gain, offset):
    expected = np.clip(image.astype(np.float32) * np.float32(gain) + np.float32(offset), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(transforms.change_levels(image, gain, offset), expected)


def test_hue_turns_by_half_degrees():
    red = np.array([[[255, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(transforms.change_hue(red, 10)[0, 0], [255, 85, 0])
    np.testing.assert_array_equal(transforms.change_hue(red, -10)[0, 0], [255, 0, 85])


def test_jitter_order_contrast_first(image):
    jittered = transforms.color_jitter(image, Always(0.0, [20.0, 1.3, 0.7, 10]))
    step = transforms.change_levels(transforms.change_levels(image, 1.0, 20.0), 1.3, 0.0)
    np.testing.assert_array_equal(jittered, transforms.change_hue(transforms.change_saturation(step, 0.7), 10))


def test_jitter_leaves_the_image_when_no_coin_comes_up(image):
    np.testing.assert_array_equal(transforms.color_jitter(image, Always(1.0)), image)


def test_jitter_uses_both_orders(image, monkeypatch):
    orders = set()
    calls: list[str] = []
    for name in ("change_levels", "change_saturation", "change_hue"):
        monkeypatch.setattr(transforms, name, lambda im, *_, name=name: (calls.append(name), im)[1])
    for seed in range(60):
        calls.clear()
        transforms.color_jitter(image, np.random.default_rng(seed))
        orders.add(tuple(calls))
    assert ("change_saturation", "change_hue", "change_levels") in orders
    assert ("change_levels", "change_saturation", "change_hue") in orders


def test_all_classes_leave_the_label(rng, label):
    class_ids, same = transforms.sample_classes(label, 0, 5, rng)
    np.testing.assert_array_equal(class_ids, np.arange(5))
    assert same is label
    assert class_ids.dtype == np.int32


def test_the_present_classes_are_kept_and_found_again(rng):
    label = rng.choice(np.array([-1, 3, 17, 40], np.int32), (20, 20))
    for _ in range(20):
        class_ids, positions = transforms.sample_classes(label, 8, 50, rng)
        assert len(set(class_ids.tolist())) == 8
        assert {3, 17, 40} <= set(class_ids.tolist())
        assert class_ids.dtype == positions.dtype == np.int32
        np.testing.assert_array_equal(np.where(positions >= 0, class_ids[positions], -1), label)


def test_negatives_and_order_vary_over_all_classes(rng):
    label = np.full((4, 4), 3, np.int32)
    draws = [transforms.sample_classes(label, 5, 12, rng)[0].tolist() for _ in range(200)]
    assert {index for draw in draws for index in draw} == set(range(12))
    assert {draw.index(3) for draw in draws} == set(range(5))


def test_of_too_many_present_classes_some_are_ignored(rng, label):
    class_ids, positions = transforms.sample_classes(label, 3, 9, rng)
    chosen = set(class_ids.tolist())
    assert len(chosen) == 3
    assert chosen <= set(range(5))
    np.testing.assert_array_equal(positions == -1, ~np.isin(label, class_ids))


def test_no_more_classes_than_there_are(rng, label):
    class_ids, _ = transforms.sample_classes(label, 100, 5, rng)
    assert sorted(class_ids.tolist()) == list(range(5))


def test_a_wholly_ignored_label_gives_negatives_only(rng):
    class_ids, positions = transforms.sample_classes(np.full((4, 4), -1, np.int32), 3, 9, rng)
    assert len(class_ids) == 3
    assert (positions == -1).all()


def test_a_crop_of_one_class_is_drawn_anew():
    label = np.zeros((40, 400), np.int32)
    label[:, 300:340:2] = 1
    image = np.zeros((40, 400, 3), np.uint8)
    draws = [transforms.random_crop(image, label, 40, np.random.default_rng(seed), tries=60)[1] for seed in range(10)]
    assert all(transforms.is_varied(cropped) for cropped in draws)
    once = [transforms.random_crop(image, label, 40, np.random.default_rng(seed))[1] for seed in range(10)]
    assert not all(transforms.is_varied(cropped) for cropped in once)


@pytest.mark.parametrize(
    ("values", "varied"), [([0, 0, 0, 1], False), ([0, 0, 1, 1], True), ([0, 1, -1, -1], True), ([2, 2, -1], False)]
)
def test_varied_labels(values, varied):
    assert transforms.is_varied(np.array([values], np.int32)) == varied


def test_a_label_that_is_all_ignored_is_not_varied():
    assert not transforms.is_varied(np.full((2, 2), -1, np.int32))
