"""What the browser gets is what the result says, pixel by pixel."""

import base64
import gzip

import numpy as np

from dinov3seg_jax.app.view import (
    SIDE,
    STEPS,
    counts_above,
    heat_of,
    heat_side,
    packed_map,
    places,
    quantize,
    reduced,
    view_of_picture,
    view_of_result,
)
from dinov3seg_jax.inference.result import Segmentation


def unpacked(text, width):
    """What viewer.js makes of `packed_map`: numbers, and of the scores sums from the left."""
    values = np.frombuffer(gzip.decompress(base64.b64decode(text)), "<u2").reshape(-1, width)
    half = len(values) // 2
    return values[:half], np.cumsum(values[half:], axis=1, dtype=np.uint16)


def result_of(height, width, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, classes, (height, width)).astype(np.int32)
    confidence = rng.random((height, width), np.float32)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    scores = rng.random((classes, height, width), np.float32)
    return Segmentation(labels, confidence, tuple(f"class {n}" for n in range(classes)), image, scores=scores)


def test_a_view_holds_single_pixels_of_the_result():
    result = result_of(90, 130)
    view = view_of_result(result, "three", side=40)
    rows, columns = places(90, 130, 40)
    assert (len(rows), len(columns)) == (28, 40)
    labels, scores = unpacked(view["map"], 40)
    expected = result.labels[rows][:, columns]
    np.testing.assert_array_equal(labels.astype(np.int16), expected)
    np.testing.assert_allclose(scores / STEPS, result.confidence[rows][:, columns], atol=1.01 / STEPS)


def test_a_small_picture_is_shown_whole():
    result = result_of(3, 5)
    labels, scores = unpacked(view_of_result(result, "")["map"], 5)
    np.testing.assert_array_equal(labels.astype(np.int16), result.labels)
    np.testing.assert_array_equal(scores, np.floor(result.confidence.astype(float) * STEPS))
    assert view_of_picture(result.image)["size"] == [5, 3]


def test_one_pixel_stands_for_the_middle_of_its_cell():
    rows, columns = places(9, 1, 3)
    assert rows.tolist() == [1, 4, 7]
    assert columns.tolist() == [0]


def test_counts_above_every_threshold_are_those_of_the_whole_picture():
    result = result_of(700, 11)
    counts = counts_above(result.labels, result.confidence, 3)
    for place in range(3):
        for percent in (0, 1, 29, 30, 58, 99, 100):
            above = (result.labels == place) & (result.confidence >= np.float32(percent / 100))
            assert counts[place, percent] == above.sum()


def test_a_score_of_exactly_a_threshold_is_not_below_it():
    exact = np.array([[percent / 100 for percent in range(101)]], np.float32)
    np.testing.assert_array_equal(quantize(exact)[0], np.arange(101) * STEPS // 100)
    np.testing.assert_array_equal(counts_above(np.zeros((1, 101), int), exact, 1)[0], np.arange(101, 0, -1))


def test_the_map_of_scores_of_a_class():
    scores = quantize(np.random.default_rng(3).random((10, 15), np.float32))
    heat = heat_of(scores)
    assert (heat["width"], heat["height"]) == (15, 10)
    differences = np.frombuffer(gzip.decompress(base64.b64decode(heat["data"])), "<u2").reshape(10, 15)
    np.testing.assert_array_equal(np.cumsum(differences, axis=1, dtype=np.uint16), scores)


def test_many_classes_have_smaller_maps_of_scores():
    assert heat_side(10) == SIDE
    assert 500 < heat_side(300) < 600


def test_a_reduced_picture_has_the_mean_of_its_cells():
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:2, :2] = 200
    small = reduced(rgb, 3)
    assert small.shape == (2, 3, 3)
    assert small[0, 0].tolist() == [200] * 3
    assert small[1:].max() == 0
    assert reduced(rgb, 6) is rgb


def test_smooth_scores_travel_in_little():
    slope = np.linspace(0, 1, 1600, dtype=np.float32)[None].repeat(1000, axis=0)
    assert len(packed_map(np.zeros((1000, 1600), np.int32), slope)) < 100_000
