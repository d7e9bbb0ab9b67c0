"""Parameters of the presets against the released models (DINOv3's specification, sections 2 and 8; SAM)."""

import math

import pytest
from flax import nnx

from dinov3seg_jax.models.graph import build, flatten
from dinov3seg_jax.models.presets import MODELS, VISION
from dinov3seg_jax.models.vit import VisionTransformer

RELEASED = {
    "vits16": 21_601_152,
    "vits16plus": 28_697_472,
    "vitb16": 85_669_632,
    "vitl16": 303_154_176,
    "vitl16plus": 403_915_776,
    "vith16plus": 840_633_600,
    "vit7b16": 6_716_043_264 - 2 * 4096,  # without local_cls_norm, which only training uses
}
LARGE = ("vitl16", "vitl16plus", "vith16plus", "vit7b16")  # many blocks to trace


def count(parameters, prefix: str = "") -> int:
    """Weights below a prefix; the periods are no parameter."""
    return sum(
        math.prod(leaf.shape)
        for name, leaf in parameters.items()
        if name.startswith(prefix) and not name.endswith("periods")
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in RELEASED]
)
def test_backbone(name):
    described = nnx.eval_shape(lambda: VisionTransformer(VISION[name], rngs=nnx.Rngs(0)))
    assert count(flatten(nnx.state(described))) == RELEASED[name]


@pytest.mark.slow
def test_paper():
    _, parameters = build(MODELS["paper"])
    assert count(parameters, "vision/backbone/") == RELEASED["vitl16"]
    assert count(parameters, "vision/head/") == 25_326_336
    assert count(parameters, "vision/") + count(parameters, "text/") == 866_611_713
    assert count(parameters, "sam/") == 308_278_272
