"""Scores of weights that lie in memory: which pictures, how they are seen, and what it takes."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config, InferenceConfig, TrainConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import validation
from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores
from dinov3seg_jax.evaluation.validation import ScoresOfWeights, one_view, spread
from dinov3seg_jax.inference.device.sharing import whole_on
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.inference.views.local_global import check_inference
from tests.evaluation.stub import Reading, dataset

CONFIG = Config(train=TrainConfig(eval_every=1, eval_pictures=3))


def never():
    return False


def scorer(monkeypatch, data, config=CONFIG, segmenter=None):
    monkeypatch.setattr(validation, "open_evaluation", lambda _: data)
    monkeypatch.setattr(validation, "seen_classes", lambda *_: data.seen)
    if segmenter is not None:
        monkeypatch.setattr(validation, "head_segmenter", lambda *_: segmenter)
    return ScoresOfWeights(config)


def of_red(data, indices):
    """What the segmenter of the stub scores on some pictures, counted plainly."""
    confusion = ConfusionMatrix(len(data.classes))
    for index in indices:
        example = data.source[index]
        confusion.add(example["image"][..., 0].astype(np.int32) % len(data.classes), example["label"])
    return scores(confusion.counts)


def test_pictures_are_spread():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(5, 0) == []


def test_it_scores_the_pictures_that_it_is_to_and_shows_some(monkeypatch):
    data = dataset(20)
    for images, scored, shown in ((0, range(20), [0, 6, 13]), (9, [0, 2, 4, 6, 8, 11, 13, 15, 17], [0, 6, 13])):
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, eval_images=images))
        found = scorer(monkeypatch, data, config, Reading())({}, never)
        assert found.scores == {name: of_red(data, scored)[name] for name in ("miou", "pixel_accuracy")}
        assert list(found.pictures) == [f"picture {index}" for index in shown]
        for picture in found.pictures.values():
            assert picture.dtype == np.uint8
            assert picture.ndim == 3


def test_a_large_picture_is_shown_smaller(monkeypatch):
    data = dataset(1)
    image = np.zeros((1000, 2000, 3), np.uint8)
    monkeypatch.setattr(type(data.source), "__getitem__", lambda *_: {"image": image, "label": image[..., 0] * 0})
    (picture,) = scorer(monkeypatch, data, segmenter=Reading())({}, never).pictures.values()
    assert 3 * validation.PANEL <= picture.shape[1] < 3 * validation.PANEL + 200


def test_what_it_is_asked_is_told_apart(monkeypatch):
    train, inference = CONFIG.train, CONFIG.inference
    others = [
        CONFIG,
        dataclasses.replace(CONFIG, train=dataclasses.replace(train, eval_images=3)),
        dataclasses.replace(CONFIG, train=dataclasses.replace(train, eval_view="whole")),
        dataclasses.replace(CONFIG, inference=dataclasses.replace(inference, stride=64)),
    ]
    asked = [scorer(monkeypatch, dataset(9), config, Reading()).asked for config in others]
    asked.append(scorer(monkeypatch, dataset(9, classes=("a", "b")), CONFIG, Reading()).asked)
    assert len(set(asked)) == len(asked)
    assert scorer(monkeypatch, dataset(9), CONFIG, Reading()).asked == asked[0]


def test_it_stops_between_two_batches(monkeypatch):
    segmenter = Reading()
    batches = segmenter.batches  # which copies of it share
    answers = iter((False, True))
    assert scorer(monkeypatch, dataset(20), segmenter=segmenter)({}, lambda: next(answers)) is None
    assert batches == [8]


def test_a_picture_that_cannot_be_read(monkeypatch):
    asked = []

    def stop():
        asked.append(1)
        return False

    with pytest.raises(UserError, match=r"image 9.png is damaged"):
        scorer(monkeypatch, dataset(20, broken=(9,)), segmenter=Reading())({}, stop)
    assert len(asked) == 3  # as often as the others ask, which wait for it


@pytest.mark.parametrize(
    ("options", "side"),
    [(InferenceConfig(), 640), (InferenceConfig(resize="catseg", fusion="logits", stride=256), 384)],
)
def test_one_view_of_each_picture(options, side):
    whole = one_view(options, 16)
    assert (whole.mode, whole.resize, whole.image_size) == ("whole", "square", side)
    check_inference(whole, 16)
    assert one_view(dataclasses.replace(options, resize="tiled"), 16).resize == "square"
    assert one_view(InferenceConfig(resize="short_side"), 16).resize == "short_side"


@pytest.mark.slow
def test_other_weights_take_no_new_program_and_no_memory_of_their_own(monkeypatch, config, parameters, compiled):
    data = dataset(8)
    config = dataclasses.replace(config, train=dataclasses.replace(CONFIG.train, eval_pictures=0))
    score = scorer(monkeypatch, data, config)
    held = []

    def remember(segmenter, other):
        held.append(other)
        return kept(segmenter, other)

    kept = Segmenter.with_parameters
    monkeypatch.setattr(Segmenter, "with_parameters", remember)
    weights = {name: jnp.asarray(value) for name, value in parameters.items()}
    first = score(weights, never)
    assert [array.unsafe_buffer_pointer() for array in held[0].values()] == [
        array.unsafe_buffer_pointer() for array in weights.values()
    ]
    compiled.clear()
    assert score(weights, never) == first
    other_text = weights | {
        name: 1.5 * value[::-1] for name, value in weights.items() if name == "text/token_embedding"
    }
    compiled.clear()  # of what was just computed
    assert score(other_text, never) != first
    assert not compiled
    labels = Segmenter(config, weights).segment_arrays([data.source[i]["image"] for i in range(8)], data.classes, 8)
    confusion = ConfusionMatrix(len(data.classes))
    for index, result in enumerate(labels):
        confusion.add(result.labels, data.source[index]["label"])
    assert first.scores["miou"] == scores(confusion.counts)["miou"]


WHOLE = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from dinov3seg_jax.inference.device.sharing import whole_on
mesh = jax.make_mesh((8, 1), ("data", "model"))
values = np.arange(64, dtype=np.float32).reshape(16, 4)
axes = {"cut": "data", "whole": None}
arrays = {name: jax.device_put(values, NamedSharding(mesh, P(axis))) for name, axis in axes.items()}
found = whole_on(jax.local_devices(), arrays)
for name, array in found.items():
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, values)
def places(array):
    return {shard.device: shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
assert places(found["whole"]) == places(arrays["whole"])
moved = jax.device_put(found["whole"], found["cut"].sharding)  # as a segmenter does
assert places(moved) == places(arrays["whole"])
"""


@pytest.mark.slow
def test_several_devices_hold_weights_whole_without_a_copy_where_they_did():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(WHOLE)], env=environment, check=True, timeout=300)


def test_on_one_device_weights_are_as_they_are():
    array = jnp.arange(3.0)
    found = whole_on(jax.local_devices(), {"a": array})["a"]
    assert found.unsafe_buffer_pointer() == array.unsafe_buffer_pointer()
