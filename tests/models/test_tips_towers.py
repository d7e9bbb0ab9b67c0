"""TIPSv2's towers as a row: what freezing and recomputing leave as it is, and the paper's head on them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import Config, DataConfig, DatasetConfig, TextConfig, TrainConfig, VisionConfig
from dinov3seg_jax.costs.dry_run import dry_run
from dinov3seg_jax.models.graph import any_values, describe
from dinov3seg_jax.models.presets import NANO, TIPS_TEXT, TIPS_VISION
from dinov3seg_jax.models.tips_text import TipsText
from dinov3seg_jax.models.tips_vision import TipsVision
from dinov3seg_jax.models.towers import TOWERS, text_width

VISION = VisionConfig(dim=16, depth=3, heads=2, patch_size=14, grid=3, storage_tokens=0, head_blocks=0)
TEXT = TextConfig(dim=16, depth=2, heads=2, vocab_size=40, context_length=64)
TINY = dataclasses.replace(NANO, towers="tips", vision=VISION, text=TEXT)


def towers(**options):
    options = {"dtype": jnp.float32, "rngs": nnx.Rngs(0), **options}
    return TOWERS["tips"].vision(TINY, **options), TOWERS["tips"].text(TINY, **options)


def gradients(tower, inputs, frozen_blocks):
    graph, state = nnx.split(tower)

    def loss(state):
        out = nnx.merge(graph, state)(inputs, frozen_blocks=frozen_blocks)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(out))

    return jax.jit(jax.value_and_grad(loss))(state)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["vision", "text"])
def test_frozen_blocks_get_no_gradient(which):
    images = jax.random.uniform(jax.random.key(0), (1, 28, 42, 3))
    inputs = [images, jnp.array([[3, 5, 0, 0], [7, 8, 9, 10]])][which]
    plain, whole = gradients(towers()[which], inputs, 0)
    again, part = gradients(towers(remat=True)[which], inputs, 2)
    np.testing.assert_allclose(plain, again, rtol=1e-6)
    for name in ("query", "value"):
        ours, all_of_them = (tree["blocks"]["attention"][name]["kernel"].get_value() for tree in (part, whole))
        assert not np.any(ours[:2])
        assert np.all(np.abs(all_of_them[:2]).max(axis=(1, 2)) > 0)
        if which == 0:
            np.testing.assert_allclose(ours[2], all_of_them[2], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_how_far_a_row_is_filled_up_does_not_matter():
    _, text = towers()
    short = text(jnp.array([[3, 5, 7]]))
    np.testing.assert_allclose(short, text(jnp.array([[3, 5, 7, 0, 0, 0, 0, 0]])), atol=1e-6)
    assert not np.any(text(jnp.zeros((1, 4), jnp.int32)))


def test_one_half_of_the_width_of_both():
    assert (TINY.vision.shared_dim, text_width(TINY)) == (16, 16)


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("tipsv2_b14", 86_316_288, 109_632_000),
        ("tipsv2_l14", 304_016_384, 183_924_736),
        ("tipsv2_so400m14", 413_393_904, 448_332_912),
        ("tipsv2_g14", 1_135_952_384, 389_133_312),
    ],
)
def test_released_sizes(name, vision, text):
    parameters = [
        sum(math.prod(leaf.shape) for leaf in describe(create)[1].values())
        for create in (
            lambda: TipsVision(TIPS_VISION[name], dtype=jnp.float32, rngs=any_values()),
            lambda: TipsText(TIPS_TEXT[name], dtype=jnp.float32, rngs=any_values()),
        )
    ]
    assert parameters == [vision - TIPS_VISION[name].dim, text]  # of the mask token, which is for training only


@pytest.mark.slow
def test_costs_need_no_tokenizer(capsys):
    data = DataConfig(train=DatasetConfig(size=2, image_size=84), crop_size=84, short_side=(84, 84))
    dry_run(Config(model=TINY, data=data, train=TrainConfig(batch_size=1)))
    said = capsys.readouterr()
    assert "lengths of prompts are those of CLIP's" in said.err
    assert "text tower" in said.out
