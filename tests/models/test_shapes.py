"""Shapes of every part under every option, without computing anything."""

import dataclasses

import chex
import jax.numpy as jnp
import pytest

from dinov3seg_jax.config import LateRefinementConfig, SamConfig, VisionConfig
from dinov3seg_jax.models.correlation import correlate
from dinov3seg_jax.models.dinotxt import TextTower, VisionTower
from dinov3seg_jax.models.dinov3seg import SegmentationModel
from dinov3seg_jax.models.early_refinement import EarlyRefinement
from dinov3seg_jax.models.late_refinement import LateRefinement
from dinov3seg_jax.models.sam import SamEncoder
from tests.models.tiny import TINY, changed, shapes_of

VISION_OPTIONS = [
    {},
    {"ffn": "swiglu"},
    {"ffn": "swiglu", "ffn_ratio": 3.0, "ffn_align": 64},
    {"qkv_bias": False},
    {"storage_tokens": 0},
    {"storage_tokens": 2},
    {"rope_normalize": "max"},
    {"rope_normalize": "min"},
    {"untie_cls_and_patch_norms": True},
    {"head_blocks": 0},
    {"depth": 1},
]
EARLY_OPTIONS = [
    {},
    {"unification": "official"},
    {"locality": 0.0},
    {"window_ratio": 0.0},
    {"image_stride": 1},
]
LATE_OPTIONS = [
    {},
    {"layers": 2},
    {"class_attention": "full"},
    {"pooling": 2},
    {"doubled_residual": True},
    {"pad_classes": 9},
    {"pad_classes": 2},
]
MODELS = {
    "default": TINY,
    "sam": changed("", spe="sam"),
    "no spe, local": changed("", spe="none", correlation="local"),
    "no early refinement, global": changed("early", enabled=False, correlation="global"),
    "no late refinement": changed("late", enabled=False),
    "best classes only": changed("late", max_classes=3),
    "bfloat16, backbone": changed("", dtype="bfloat16", patch_features="backbone", remat=True),
}


def named(options):
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "default"


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_model(config):
    result = shapes_of(
        lambda rngs: SegmentationModel(config, rngs=rngs),
        lambda model: model(jnp.zeros((2, 80, 64, 3)), jnp.zeros((2, 5, 64)), jnp.ones((2, 5), bool)),
    )
    chex.assert_shape(result.logits, (2, 5, 20, 16))
    assert result.logits.dtype == jnp.float32


@pytest.mark.parametrize("options", VISION_OPTIONS, ids=named)
def test_vision_tower(options):
    """Pixels beyond the last whole patch are dropped."""
    size = (50, 80)
    config = dataclasses.replace(TINY.vision, **options)
    features = shapes_of(
        lambda rngs: VisionTower(config, dtype=jnp.float32, rngs=rngs), lambda tower: tower(jnp.zeros((2, *size, 3)))
    )
    chex.assert_shape(features.cls, (2, 32))
    maps = (features.patches, features.backbone_patches, *features.intermediate)
    chex.assert_shape(maps, (2, size[0] // 16, size[1] // 16, 32))


def backbone(config: VisionConfig, **arguments):
    return shapes_of(
        lambda rngs: VisionTower(config, dtype=jnp.float32, rngs=rngs).backbone,
        lambda vit: vit(jnp.zeros((2, 48, 32, 3)), **arguments),
    )


def test_layers_of_the_backbone():
    outputs = backbone(dataclasses.replace(TINY.vision, depth=3), layers=[0, 2])
    assert len(outputs) == 2
    for tokens in outputs:
        chex.assert_shape(tokens.cls, (2, 32))
        chex.assert_shape(tokens.storage, (2, 4, 32))
        chex.assert_shape(tokens.patches, (2, 3, 2, 32))


@pytest.mark.parametrize("layers", [[1, 0], [0, 0], [-1], [2]])
def test_layers_out_of_order_are_refused(layers):
    with pytest.raises(ValueError, match="layers must be increasing"):
        backbone(TINY.vision, layers=layers)


@pytest.mark.parametrize("length", [3, 8])
def test_text_of_any_length(length):
    text = shapes_of(
        lambda rngs: TextTower(TINY.text, 64, dtype=jnp.float32, rngs=rngs),
        lambda tower: tower(jnp.zeros((7, length), int)),
    )
    chex.assert_shape(text, (7, 64))


@pytest.mark.parametrize(
    ("options", "grid"), [(options, None) for options in EARLY_OPTIONS] + [({}, (8, 12)), ({}, (5, 7))], ids=str
)
def test_early_refinement(options, grid):
    config = dataclasses.replace(TINY.early, **options)
    refined = shapes_of(
        lambda rngs: EarlyRefinement(config, rngs=rngs),
        lambda early: early(jnp.zeros((2, 64, 96, 3)), jnp.zeros((2, 4, 6, 40)), grid),
    )
    chex.assert_shape(refined, (2, *(grid or (4, 6)), 40))


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_output_stride(stride):
    config = changed("early", output_stride=stride, spe="sam" if stride == 8 else "vision")
    result = shapes_of(
        lambda rngs: SegmentationModel(config, rngs=rngs),
        lambda model: model(jnp.zeros((1, 48, 64, 3)), jnp.zeros((1, 2, 64))),
    )
    chex.assert_shape(result.logits, (1, 2, 4 * 48 // stride, 4 * 64 // stride))


@pytest.mark.parametrize(("kind", "channels"), [("local+global", 2), ("local", 1), ("global", 1)])
def test_correlation(kind, channels):
    correlation = correlate(jnp.ones((2, 3, 4, 8)), jnp.ones((2, 5, 16)), kind)
    chex.assert_shape(correlation, (2, 5, 3, 4, channels))
    chex.assert_trees_all_close(correlation, jnp.ones_like(correlation), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "grid", "appearance_dim"),
    [(options, (4, 7), 12) for options in LATE_OPTIONS] + [({}, (6, 9), 0), ({}, (1, 5), 12)],
    ids=str,
)
def test_late_refinement(options, grid, appearance_dim):
    """On grids that windows of 3 divide and on others."""
    config: LateRefinementConfig = dataclasses.replace(TINY.late, **options)
    refined = shapes_of(
        lambda rngs: LateRefinement(config, appearance_dim, 10, dtype=jnp.float32, rngs=rngs),
        lambda late: late(
            jnp.zeros((2, 5, *grid, 16)),
            jnp.zeros((2, *grid, appearance_dim)) if appearance_dim else None,
            jnp.zeros((2, 5, 10)),
            jnp.ones((2, 5), bool),
        ),
    )
    chex.assert_shape(refined, (2, 5, *grid, 16))


@pytest.mark.parametrize("global_blocks", [(), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (96, 48)], ids=str)
def test_sam(global_blocks, size):
    config: SamConfig = dataclasses.replace(TINY.sam, global_blocks=global_blocks)
    neck, early, middle = shapes_of(
        lambda rngs: SamEncoder(config, rngs=rngs), lambda encoder: encoder(jnp.zeros((2, *size, 3)))
    )
    chex.assert_shape(neck, (2, size[0] // 16, size[1] // 16, 8))
    chex.assert_shape((early, middle), (2, size[0] // 16, size[1] // 16, 16))
