"""A linear head on a frozen backbone: its loss, its schedule, and a run from the first step to the score."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinov3seg_jax
from dinov3seg_jax.config import (
    Config,
    DataConfig,
    DatasetConfig,
    InferenceConfig,
    LinearConfig,
    TrainConfig,
)
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.data.painted import SEEN_CLASSES
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.inference.linear import LinearSegmenter, crop_side, resize_as_dinov3
from dinov3seg_jax.inference.load import open_model
from dinov3seg_jax.models.graph import build, initialize
from dinov3seg_jax.models.linear_head import CHANNEL_DROPOUT, LinearHead
from dinov3seg_jax.store.folder import load_parameters
from dinov3seg_jax.training.linear_probe import RUNNING, check_linear, one_cycle, pixel_cross_entropy
from dinov3seg_jax.training.loop import train
from tests.converted import write_folder
from tests.tiny import MODEL

RNG = np.random.default_rng(0)
MODEL = dataclasses.replace(
    MODEL,
    vision=dataclasses.replace(MODEL.vision, depth=2),
    linear=LinearConfig(classes=len(SEEN_CLASSES), layers=(0, 1)),
)
CONFIG = Config(
    model=MODEL,
    data=DataConfig(
        train=DatasetConfig(image_size=48),
        eval=DatasetConfig(split="train", image_size=48, size=2),
        crop_size=32,
        short_side=(32, 48),
        crop_tries=3,
    ),
    train=TrainConfig(
        steps=4,
        batch_size=2,
        learning_rate=1e-2,
        schedule="one_cycle",
        warmup_steps=1,
        decay_all=True,
        finetune="none",
        clip_norm=1e9,
        log_every=1,
    ),
    inference=InferenceConfig(mode="slide", image_size=48, window=32, stride=21),
    report_images=1,
)
IMAGE = RNG.integers(0, 256, (50, 70, 3), np.uint8)


def test_ignored_pixels_add_nothing_but_count():
    logits = RNG.standard_normal((2, 3, 2, 2)).astype(np.float32)
    label = np.array([[[0, 2, -1, 1]] * 2, [[-1] * 4] * 2], np.int32)
    resized = np.asarray(jax.image.resize(logits, (2, 3, 2, 4), "linear", antialias=False), np.float64)
    chosen = np.take_along_axis(resized, np.maximum(label, 0)[:, None], axis=1)[:, 0]
    losses = np.where(label >= 0, np.log(np.exp(resized).sum(axis=1)) - chosen, 0)
    np.testing.assert_allclose(pixel_cross_entropy(logits, label), losses.sum() / label.size, rtol=1e-5)


def test_the_schedule_rises_and_falls():
    steps, warmup, rate = 40, 10, 0.1
    schedule = jax.jit(one_cycle(rate, steps, warmup))
    for step in range(steps):
        if step < warmup:
            expected = rate * (1 - (1 - step / warmup) * (1 - 1e-6)) * (1 - step / steps)
        else:
            expected = rate / 2 * (1 + np.cos(np.pi * (step + 1) / steps))
        assert schedule(step) == pytest.approx(expected, rel=1e-5, abs=rate * 1e-7)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(dataclasses.replace(CONFIG, workdir=str(tmp_path_factory.mktemp("linear") / "run")))


def test_only_the_head_trains_and_statistics_run(run):
    before, (_, after) = initialize(MODEL, jax.random.key(0)), load_parameters(run)
    moved = {name for name in before if (np.asarray(after[name]) != before[name]).any()}
    assert moved == {name for name in before if name.startswith("linear/")} >= set(RUNNING)
    assert after.keys() == build(MODEL)[1].keys()


def test_running_statistics_go_a_tenth_of_the_way_to_the_batch():
    features = (RNG.standard_normal((500, 2, 2, 6)) + np.arange(6)).astype(np.float32)
    head = LinearHead(6, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    head.train_logits(jax.random.key(0), features)
    np.testing.assert_allclose(head.norm.mean[...], 0.1 * np.arange(6), atol=0.05)
    dropped = np.arange(6) ** 2 * CHANNEL_DROPOUT / (1 - CHANNEL_DROPOUT)  # adds to the variance, not to the mean
    np.testing.assert_allclose(head.norm.var[...], 0.9 + 0.1 * (1 / (1 - CHANNEL_DROPOUT) + dropped), rtol=0.15)


def test_a_dropped_channel_is_dropped_everywhere_in_its_image():
    features = np.ones((4, 3, 3, 50), np.float32)
    head = LinearHead(50, 50, dtype=jnp.float32, rngs=nnx.Rngs(0))
    head.classifier.kernel.set_value(jnp.eye(50))
    logits = np.asarray(head.train_logits(jax.random.key(0), features))
    np.testing.assert_array_equal(logits, np.broadcast_to(logits[:, :1, :1], logits.shape))
    assert (logits[0] != logits[1]).any()


def test_a_linear_run_is_scored_and_says_how(run):
    summary = evaluate(CONFIG, run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["miou"] == summary["miou"]
    assert {"dice", "fscore", "precision", "recall"} <= metrics.keys()
    assert [row["name"] for row in metrics["classes"]] == list(SEEN_CLASSES)
    assert "windows of 32 pixels every 21, whose logits are averaged" in (run / "report.md").read_text()


def test_a_converted_head_scores_as_the_run_it_came_from(run, tmp_path):
    _, parameters = load_parameters(run)
    for folder, part in {"dinov3": "vision/", "linear": "linear/"}.items():
        write_folder(
            tmp_path / folder, {n: np.asarray(x) for n, x in parameters.items() if n.startswith(part)}, folder, MODEL
        )
    config = dataclasses.replace(CONFIG, init_from=str(tmp_path / "dinov3"))
    converted, trained = evaluate(config, tmp_path / "linear"), evaluate(CONFIG, run)
    assert converted["miou"] == trained["miou"]
    np.testing.assert_array_equal(converted["iou"], trained["iou"])
    assert (tmp_path / "linear" / "linear" / "metrics.json").is_file()
    with pytest.raises(UserError, match="is a linear head alone; set --config.init_from="):
        evaluate(CONFIG, tmp_path / "linear")
    with pytest.raises(UserError, match="lack 'vision/backbone/blocks/attention/key/bias'"):
        open_model(tmp_path / "linear", around=dataclasses.replace(CONFIG, init_from=str(tmp_path / "linear")))


@pytest.mark.slow
def test_a_linear_run_labels_pictures_with_its_own_classes(run):
    model = dinov3seg_jax.load(run)
    assert isinstance(model, LinearSegmenter)
    result = model.segment(IMAGE, SEEN_CLASSES)
    assert result.labels.shape == (50, 70)
    assert 1 / len(SEEN_CLASSES) <= result.confidence.min() <= result.confidence.max() <= 1
    whole = dinov3seg_jax.load(run, ["inference.mode=whole"]).segment(IMAGE, SEEN_CLASSES)
    assert whole.labels.shape == (50, 70)
    with pytest.raises(UserError, match=f"2 class names were given and the linear head has {len(SEEN_CLASSES)}"):
        model.segment(IMAGE, "cat, dog")
    with pytest.raises(UserError, match="'local_global' is not for a linear head"):
        dinov3seg_jax.load(run, ["inference.mode=local_global"])


@pytest.mark.parametrize(
    ("changes", "classes", "message"),
    [
        ({}, 7, "data set 'painted_scenes' has 7 classes; set --config.model.linear.classes=7"),
        ({"objective": "alignment"}, len(SEEN_CLASSES), "train.objective is not for a linear head"),
        ({"alignment_steps": 3}, len(SEEN_CLASSES), "set --config.train.alignment_steps=0"),
        ({"view_size": 32}, len(SEEN_CLASSES), "train.view_size is not for a linear head"),
        ({"hardest_classes": 3}, len(SEEN_CLASSES), "train.hardest_classes is not for a linear head"),
    ],
)
def test_options_that_a_linear_head_does_not_have(changes, classes, message):
    with pytest.raises(UserError, match=message):
        check_linear(dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes)), classes)


def test_windows_larger_than_the_picture():
    assert crop_side(40, 112, 48) == 48
    assert crop_side(40, 44, 48) == 40
    assert crop_side(48, 48, 48) == 48


def test_the_long_side_is_rounded():
    assert resize_as_dinov3(np.zeros((61, 83, 3), np.uint8), 40).shape == (40, 54, 3)
    assert resize_as_dinov3(np.zeros((100, 61, 3), np.uint8), 41).shape == (67, 41, 3)
    assert resize_as_dinov3(np.zeros((1, 600, 3), np.uint8), 40).shape == (1, 320, 3)


def test_the_shipped_config_fits_together():
    config = load_config("configs/linear_ade.py")
    _, described = build(config.model)
    assert described["linear/classifier/kernel"].shape == (1024, 150)
    check_linear(config, 150)
    heavy = {name for name in described if not name.startswith(("vision/backbone/", "linear/"))}
    assert not heavy
    assert LinearSegmenter(config, {}).config.inference.stride == 341
