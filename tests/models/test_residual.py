"""A float32 residual stream around bfloat16 arithmetic: nearer to float32 by a factor, and the default is unchanged."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.models.chunked import kept_bytes
from dinov3seg_jax.models.graph import bind, build, initialize
from tests.models.tiny import TINY, changed, random

DEPTH = 24
TOKENS = np.arange(1, 41, dtype=np.int32).reshape(5, 8)
IMAGES = jax.nn.sigmoid(random(0, 2, 64, 64, 3))


def deep(towers="dinotxt", spe="none"):
    """Two dozen blocks in each tower."""
    vision = {"depth": DEPTH, "head_blocks": int(towers == "dinotxt"), "grid": 4}
    return dataclasses.replace(
        TINY,
        towers=towers,
        spe=spe,
        vision=dataclasses.replace(TINY.vision, **vision),
        text=dataclasses.replace(TINY.text, depth=DEPTH, dim=32 if towers == "tips" else 16),
        sam=dataclasses.replace(TINY.sam, depth=DEPTH, global_blocks=(5, 11)),
        late=dataclasses.replace(TINY.late, layers=3),
        early=dataclasses.replace(TINY.early, enabled=False),
    )


def patches(model):
    return model.encode_image(IMAGES).patches


def texts(model):
    return model.encode_text(TOKENS)


def prior(model):
    return model.encode_image(IMAGES).prior.middle


def class_maps(model):
    """Of the spatial blocks, which have most of the sums."""
    x = model.embed_correlation(random(1, 1, 3, 6, 6, 2))
    for block in model.late.spatial:
        x = block(x, None)
    return x


@functools.cache
def parameters_of(config):
    """Branches add a tenth of what they would at random, as those of trained blocks do."""
    branch = re.compile(r".*/(attention/out|ffn/down)/kernel")
    drawn = initialize(config, jax.random.key(0))
    return {name: value * (0.1 if branch.fullmatch(name) else 1) for name, value in drawn.items()}


def outputs(config, read):
    graph, _ = build(config)
    run = jax.jit(lambda parameters: read(bind(graph, parameters)).astype(jnp.float32))
    return np.asarray(run(parameters_of(dataclasses.replace(config, dtype="float32", float32_residual="none"))))


@pytest.mark.parametrize(
    ("config", "read", "wide", "factor"),
    [
        pytest.param(deep(), patches, "encoders", 2.0, marks=pytest.mark.slow),
        pytest.param(deep("clip"), patches, "encoders", 2.0, marks=pytest.mark.slow),
        pytest.param(deep("tips"), patches, "encoders", 2.0, marks=pytest.mark.slow),
        (deep("tips"), texts, "encoders", 2.0),
        pytest.param(deep(), texts, "encoders", 1.3, marks=pytest.mark.slow),
        pytest.param(deep(spe="sam"), prior, "encoders", 2.0, marks=pytest.mark.slow),
        pytest.param(deep(), class_maps, "all", 1.5, marks=pytest.mark.slow),
    ],
    ids=["vision", "clip", "tips", "tips text", "text", "sam", "class maps"],
)
def test_outputs_are_nearer_to_those_of_float32(config, read, wide, factor):
    exact = outputs(config, read)
    narrow, kept = (
        np.abs(outputs(dataclasses.replace(config, dtype="bfloat16", float32_residual=residual), read) - exact).mean()
        for residual in ("none", wide)
    )
    assert factor * kept < narrow < 0.05 * np.abs(exact).mean()


def test_maps_that_are_kept_between_passes_count_at_their_size():
    half, wide = (changed("late", dtype="bfloat16", float32_residual=residual) for residual in ("encoders", "all"))
    assert kept_bytes(wide, 3, 4) == 2 * kept_bytes(half, 3, 4) == 3 * 4 * 16 * 4
