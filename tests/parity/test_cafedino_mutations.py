"""CAFe-DINO's references are sharp: one wrong detail in an otherwise right model exceeds the tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.models import blocks, cafedino, cafedino_blocks
from dinov3seg_jax.models.cafedino_blocks import BiasedSwinBlock, Windows
from dinov3seg_jax.models.early_refinement import FeatureUnification
from dinov3seg_jax.models.layers import LayerNorm
from tests.parity.fixtures import SHIPPED
from tests.parity.official import run
from tests.parity.test_cafedino import TOLERANCE, load, model, pixels, text_of

CUT, OFFSETS = Windows.cut, Windows.offsets
pytestmark = pytest.mark.slow  # each compiles a model of its own
PATH = SHIPPED / "cafedino_model.npz"


def error(name="small_output", change=lambda model: None, text=None, like="") -> float:
    """The largest error of the logits, in tolerances."""
    values, ours = load(PATH), model(PATH, like or name)
    change(ours)
    images, guide = (pixels(values, name, key) for key in ("image", "upsample_image"))
    text = text_of(PATH, name) if text is None else text
    logits = run(ours, lambda model, images, guide: model(images, text, guide), images, guide)
    official = values[f"{name}/out/logits"]
    return float(np.abs(np.asarray(logits) - official).max() / np.abs(official).max() / TOLERANCE)


def residual_of_the_input(block, x, guidance):
    y = x + block.attention(block.norm1(x), guidance)
    return y + block.ffn(block.norm2(y))


def class_by_class(volume):
    """Volumes whose channels are laid out class after class."""
    return lambda maps, order: volume(maps, (1, 2, 3, 0, 4) if order == (1, 2, 3, 4, 0) else order)


def padded_first(windows, x):
    unshifted = windows._replace(shift=(0, 0), grid=windows.padded)
    x = jnp.pad(x, ((0, 0), (0, 0), *((0, n - m) for n, m in zip(windows.padded, windows.grid, strict=True)), (0, 0)))
    return CUT(unshifted, jnp.roll(x, (-windows.shift[0], -windows.shift[1]), (2, 3)))


def per_channel(unify, features):
    unify.unification = "per_channel"
    return FeatureUnification.__call__(unify, features)


MUTATIONS = {
    "residual of the block's input": (BiasedSwinBlock, "__call__", residual_of_the_input),
    "channels class by class": (jnp, "transpose", class_by_class(jnp.transpose)),
    "no shift mask": (Windows, "mask", lambda windows: np.zeros((1, 1, 1, 1), np.float32)),
    "offsets swapped": (Windows, "offsets", lambda windows, table: OFFSETS(windows, table).T),
    "another GELU in the layers": (blocks, "gelu", lambda x: jax.nn.gelu(x, approximate=True)),
    "another GELU at the end": (cafedino, "gelu", lambda x: jax.nn.gelu(x, approximate=True)),
    "unification as described": (FeatureUnification, "_official", per_channel),
}


def test_nothing_changed():
    assert error() < 1


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_detail(monkeypatch, mutation):
    monkeypatch.setattr(*MUTATIONS[mutation])
    assert error() > 1


def test_padding_before_the_shift(monkeypatch):
    monkeypatch.setattr(Windows, "cut", padded_first)
    assert error("window_128") > 1


def test_epsilon():
    def change(model):
        for _, module in nnx.iter_modules(model):
            if isinstance(module, LayerNorm):
                module.epsilon = 1e-6

    assert error(change=change) > 1


def test_one_template_for_ten():
    assert error(text=load(PATH)["text/out/embedding_training"]) > 1


def test_attention_between_classes_for_heads():
    assert error(like="linear_attention") > 1


def test_stored_statistics_for_those_of_the_batch():
    assert error("bn_batch_statistics", like="small_output") > 1


def test_guidance_of_each_layer_not_normalised(monkeypatch):
    monkeypatch.setattr(
        cafedino_blocks.SpatialBlock,
        "__call__",
        lambda block, x, appearance: block.shifted(block.windowed(x, appearance[:, None]), appearance[:, None]),
    )
    assert error() > 1
