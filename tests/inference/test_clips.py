"""Frames of a video as pictures, and the mean of their scores over time."""

import numpy as np
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.clips import Smoothing, check_clip_options
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.class_lists import ClassList
from tests.clips import write_clip

NAMES = ("grass", "sky")
RNG = np.random.default_rng(0)


def results(count, rows=2):
    """Of random scores."""
    every = RNG.random((count, rows, 4, 5)).astype(np.float32)
    image = np.zeros((4, 5, 3), np.uint8)
    return [Segmentation(s.argmax(0).astype(np.int32), s.max(0), NAMES, image, scores=s) for s in every]


def test_labels_are_those_of_the_mean_of_all_frames_so_far():
    smoothing, frames = Smoothing(0.75, ClassList.of(NAMES)), results(5)
    for number, frame in enumerate(frames):
        weights = [0.75**number, *(0.25 * 0.75 ** (number - place) for place in range(1, number + 1))]
        mean = sum(weight * earlier.scores.astype(float) for weight, earlier in zip(weights, frames, strict=False))
        smooth = smoothing(frame)
        np.testing.assert_array_equal(smooth.labels, mean.argmax(0))
        np.testing.assert_allclose(smooth.confidence, mean.max(0), atol=1e-6)
        assert smooth.scores is None
    assert any((smooth.labels != frame.labels).any() for frame in frames)


def test_no_weight_is_the_frames_themselves():
    for frame in results(2):
        assert Smoothing(0.0, ClassList.of(NAMES))(frame) is frame


def test_what_the_mean_is_not_sure_of_is_unknown():
    asked = ClassList.of(NAMES, background="wood", min_confidence=0.6, unknown="who knows")
    smoothing, frames = Smoothing(0.5, asked), results(2, rows=3)
    smoothing(frames[0])
    smooth = smoothing(frames[1])
    mean = (frames[0].scores + frames[1].scores) / 2
    assert asked.names[3] == "who knows"
    np.testing.assert_array_equal(smooth.labels, np.where(mean.max(0) >= 0.6, mean.argmax(0), 3))
    assert {2, 3} <= set(smooth.labels.ravel().tolist())


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", True])
def test_wrong_steps_are_one_sentence(every):
    with pytest.raises(UserError, match="every is .*; give a whole number above 0"):
        check_clip_options(every, 0.0)


@pytest.mark.parametrize("smooth", [1, -0.1, float("nan"), float("inf"), "0.5", None])
def test_wrong_weights_are_one_sentence(smooth):
    with pytest.raises(UserError, match="smooth is .*; give a number from 0"):
        check_clip_options(1, smooth)


def test_a_models_frames_are_its_pictures(tmp_path, model):
    images = [RNG.integers(0, 256, (30, 40, 3), np.uint8) for _ in range(5)]
    path = write_clip(tmp_path / "clip.mkv", images, [0, 40, 90, 91, 200])
    frames = list(model.segment_video(path, NAMES, every=2))
    assert [(frame.number, frame.time) for frame in frames] == [(0, 0), (2, 0.09), (4, 0.2)]
    for frame in frames:
        alone = model.segment(images[frame.number], NAMES)
        np.testing.assert_array_equal(frame.result.labels, alone.labels)
        np.testing.assert_array_equal(frame.result.confidence, alone.confidence)
    first, *_, last = model.segment_video(path, NAMES, every=2, smooth=0.5)
    np.testing.assert_array_equal(first.result.labels, frames[0].result.labels)
    scores = [model.segment(images[number], NAMES, scores=True).scores for number in (0, 2, 4)]
    mean = scores[0] / 4 + scores[1] / 4 + scores[2] / 2
    np.testing.assert_allclose(last.result.confidence, mean.max(0), atol=1e-6)


def test_damage_is_a_note_and_wrong_options_come_first(tmp_path, model, capsys):
    path = write_clip(tmp_path / "clip.mkv", [RNG.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(20)])
    path.write_bytes(path.read_bytes()[:100_000])
    assert len(list(model.segment_video(path, NAMES, every=4))) == 2
    assert f"note: {path} is damaged from" in capsys.readouterr().err
    with pytest.raises(UserError, match="every is 0"):
        model.segment_video(path, NAMES, every=0)
    with pytest.raises(UserError, match="is no video that can be read"):
        next(model.segment_video(__file__, NAMES))
