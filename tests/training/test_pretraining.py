"""The losses that stand in for pre-training: against plain NumPy, and what they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config, TrainConfig
from dinov3seg_jax.models.dinotxt import VisionFeatures
from dinov3seg_jax.models.presets import NANO
from dinov3seg_jax.training import loop, pretraining
from dinov3seg_jax.training.finetune import is_trainable
from dinov3seg_jax.training.pretraining import MARGIN, TEMPERATURE, caption_loss, nearest_to_own, recognition_loss

RNG = np.random.default_rng(0)


def info_nce(first, second, scale):
    """By its definition, in float64."""
    first, second = (np.float64(rows) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    likely = np.exp(scale * first @ second.T)
    own = likely.diagonal()
    return np.mean([-np.log(own / likely.sum(axis)).mean() for axis in (0, 1)])


def test_the_loss_is_the_cross_entropy_of_own_pairs_both_ways():
    first, second = RNG.standard_normal((2, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(nearest_to_own(first, second, 7.0), info_nce(first, second, 7.0), rtol=1e-5)


class Told:
    """In a model's place: features that are the pixels of each patch, and texts that are given."""

    config = NANO

    def __init__(self, texts=None, log_scale=0.0):
        self._texts = texts
        self.text = self
        self.logit_scale = jnp.array([log_scale], jnp.float32)

    def __call__(self, tokens):
        return self._texts[tokens[:, 0]]

    def see(self, images):
        b, height, width, _ = images.shape
        patches = images.reshape(b, height // 16, 16, width // 16, 16, 3).mean(axis=(2, 4))
        return VisionFeatures(patches[:, 0, 0], patches, patches, (patches, patches))


@pytest.mark.parametrize(("log_scale", "factor"), [(1.5, np.exp(1.5)), (-3.0, 1.0), (9.0, 100.0)])
def test_captions_meet_the_class_token_and_the_mean_patch(log_scale, factor):
    images = RNG.uniform(0, 1, (4, 32, 48, 3)).astype(np.float32)
    texts = RNG.standard_normal((9, 6)).astype(np.float32)
    tokens = np.array([[3], [1], [8], [0]])
    shown = np.concatenate([images[:, :16, :16].mean(axis=(1, 2)), images.mean(axis=(1, 2))], axis=1)
    found = caption_loss(Told(jnp.asarray(texts), log_scale), jnp.asarray(images), tokens)
    np.testing.assert_allclose(found, info_nce(shown, texts[tokens[:, 0]], factor), rtol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_a_patch_is_to_be_itself_in_the_other_view_wherever_that_lies(seed):
    """Features of a patch alone are the same in both views, so the shared patches meet themselves."""
    images = RNG.uniform(0, 1, (2, 64, 80, 3)).astype(np.float32)
    top, left = np.asarray(jax.random.randint(jax.random.key(seed), (2,), 0, MARGIN + 1))
    patches = np.asarray(Told().see(images).patches)[:, top : top + 2, left : left + 3].reshape(-1, 3)
    found = recognition_loss(Told(), jnp.asarray(images), jax.random.key(seed))
    np.testing.assert_allclose(found, info_nce(patches, patches, 1 / TEMPERATURE), rtol=1e-4)


@pytest.mark.parametrize(
    ("patches", "images"), [(11, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((12, 2), (1, 1)))]
)
def test_no_more_patches_are_told_apart_than_a_matrix_of_all_pairs_allows(monkeypatch, patches, images):
    """An image has 2 x 3 that both views show."""
    monkeypatch.setattr(pretraining, "PATCHES", patches)
    three, key = jnp.asarray(RNG.uniform(0, 1, (3, 64, 80, 3)), jnp.float32), jax.random.key(0)
    found = recognition_loss(Told(), three, key)
    monkeypatch.undo()
    np.testing.assert_allclose(found, recognition_loss(Told(), three[:images], key), rtol=1e-5)


PARAMETERS = (
    "vision/backbone/norm/scale",
    "vision/head/norm/scale",
    "text/token_embedding",
    "text/logit_scale",
    "late/x",
)


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        (TrainConfig(objective="patches", finetune="backbone"), {"vision/backbone/norm/scale"}),
        (TrainConfig(objective="captions", finetune="head"), {"vision/head/norm/scale", "text/logit_scale"}),
    ],
)
def test_each_stage_trains_what_the_papers_trained_in_it(stage, trained):
    assert {name for name in PARAMETERS if is_trainable(name, stage)} == trained


def stages(**options):
    train = dataclasses.replace(TrainConfig(), batch_size=4, accumulate=2, **options)
    return loop.runs_before(Config(workdir="run", train=train))


def test_a_run_from_nothing_is_preceded_by_backbone_and_towers():
    backbone, towers = stages(alignment_steps=7, alignment_by="captions", backbone_steps=5, alignment_batch=8)
    assert [run.workdir for run in (backbone, towers)] == ["run/backbone", "run/towers"]
    assert [run.init_from for run in (backbone, towers)] == ["", "run/backbone"]
    assert [(run.train.objective, run.train.steps, run.train.finetune) for run in (backbone, towers)] == [
        ("patches", 5, "backbone"),
        ("captions", 7, "head"),
    ]
    assert {(run.train.batch_size, run.train.accumulate) for run in (backbone, towers)} == {(8, 1)}
    assert [run.train.objective for run in loop.runs_before(towers_without(towers))] == ["patches"]


def towers_without(towers):
    """The same run where nothing is named to start from."""
    return dataclasses.replace(towers, init_from="")


def test_without_a_backbones_steps_captions_train_both_towers():
    (towers,) = stages(alignment_steps=7, alignment_by="captions")
    assert (towers.init_from, towers.train.finetune, towers.train.batch_size) == ("", "full", 4)


def test_masks_and_weights_to_start_from_are_as_before():
    (towers,) = stages(alignment_steps=7, backbone_steps=5)
    assert (towers.train.objective, towers.train.accumulate) == ("alignment", 2)
    assert stages(backbone_steps=5) == []
    assert loop.runs_before(Config(init_from="weights", train=TrainConfig(alignment_steps=7))) == []
