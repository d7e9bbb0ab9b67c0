"""What the loss reaches: everything that trains, and nothing of frozen blocks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.graph import NONE_FROZEN, FrozenBlocks, bind, build, flatten, initialize
from dinov3seg_jax.models.sam import SamEncoder
from tests.models.tiny import TINY, changed, compiled, lively, random

# The scale is the alignment loss's. A bias on keys moves all logits of a query alike, and a softmax does not notice.
UNREACHED = re.compile(r"text/logit_scale|.*/(periods|mask_token)|(?!late/classes).*key/bias")
TOWERS_ONLY = changed(
    "", spe="none", early=changed("early", enabled=False).early, late=changed("late", enabled=False).late
)
STACKS = {"vision/backbone/blocks/": 1, "text/blocks/": 1}  # how many blocks are frozen


def gradients(config: ModelConfig, frozen_blocks: FrozenBlocks) -> dict[str, jax.Array]:
    graph, _ = build(config, frozen_blocks)
    tokens = np.array([[1, 5, 63, 0], [1, 9, 7, 63], [1, 63, 0, 0]])
    images, weights = jax.nn.sigmoid(random(1, 1, 64, 48, 3)), random(2, 1, 3, 16, 12)

    def loss(parameters: dict[str, jax.Array]) -> jax.Array:
        model = bind(graph, parameters)
        return jnp.sum(model(images, model.encode_text(tokens)[None]).logits * weights)

    return compiled(jax.grad(loss))(lively(initialize(config, jax.random.key(0))))


def missed(gradients: dict[str, jax.Array]) -> set[str]:
    """Parameters without a gradient that ought to have one."""
    return {name for name, value in gradients.items() if not np.any(value) and not UNREACHED.fullmatch(name)}


@pytest.fixture(scope="module")
def whole():
    return gradients(TINY, NONE_FROZEN)


@pytest.fixture(scope="module")
def frozen():
    return gradients(TOWERS_ONLY, FrozenBlocks(*STACKS.values()))


@pytest.mark.parametrize("name", [pytest.param("whole", marks=pytest.mark.slow), "frozen"])
def test_finite(name, request):
    for parameter, value in request.getfixturevalue(name).items():
        assert np.isfinite(value).all(), parameter


def test_everything_is_reached(whole):
    assert not missed(whole)


@pytest.mark.parametrize(("stack", "count"), list(STACKS.items()))
def test_frozen_blocks_get_exactly_none(frozen, stack, count):
    for name, value in frozen.items():
        if name.startswith(stack):
            assert not np.any(value[:count]), name
            assert np.any(value[count:]) or UNREACHED.fullmatch(name), name


def test_nothing_before_frozen_blocks_is_reached(frozen):
    before = r"vision/backbone/(patch_embed/.*|cls_token|storage_tokens)|text/(token|positional)_embedding"
    assert missed(frozen) == {name for name in frozen if re.fullmatch(before, name)}


@pytest.mark.slow
def test_sam_can_train():
    graph, state = nnx.split(SamEncoder(TINY.sam, rngs=nnx.Rngs(0)))
    images, weights = random(1, 1, 80, 64, 3), random(2, 1, 5, 4, 8)

    def loss(parameters: dict[str, jax.Array]) -> jax.Array:
        neck, _, _ = bind(graph, parameters)(images)
        return jnp.sum(neck * weights)

    found = compiled(jax.grad(loss))(lively(flatten(state)))
    assert all(np.isfinite(value).all() for value in found.values())
    assert not {name for name in found if not np.any(found[name]) and not UNREACHED.fullmatch(name)}
