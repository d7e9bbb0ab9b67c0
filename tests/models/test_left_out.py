"""What an ablation leaves out is out, and the rest is as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import LateRefinementConfig
from dinov3seg_jax.models.late_refinement import LateRefinement

MAPS = np.random.default_rng(0).standard_normal((1, 3, 4, 4, 8)).astype(np.float32)
APPEARANCE = np.random.default_rng(1).standard_normal((1, 4, 4, 8)).astype(np.float32)
TEXT = np.random.default_rng(2).standard_normal((1, 3, 8)).astype(np.float32)


def late(without):
    config = LateRefinementConfig(dim=8, heads=2, window=4, without=without)
    return LateRefinement(config, 8, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("without", "left"), [("spatial", "classes"), pytest.param("classes", "spatial", marks=pytest.mark.slow)]
)
def test_the_blocks_of_one_kind_pass_maps_on(without, left):
    whole, part = late("none"), late(without)
    expected = jnp.asarray(MAPS)
    for spatial, classes in zip(whole.spatial, whole.classes, strict=True):
        expected = spatial(expected, APPEARANCE) if left == "spatial" else classes(expected, TEXT)
    found = part(jnp.asarray(MAPS), APPEARANCE, TEXT)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - MAPS).max() > 0.1
    assert np.abs(found - whole(jnp.asarray(MAPS), APPEARANCE, TEXT)).max() > 0.01


def test_without_class_blocks_no_class_hears_of_another():
    other = MAPS.copy()
    other[:, 1] += 1
    first, second = (late("classes")(jnp.asarray(maps), APPEARANCE, TEXT) for maps in (MAPS, other))
    changed = np.abs(jax.device_get(first - second)).max(axis=(0, 2, 3, 4)) > 0
    assert changed.tolist() == [False, True, False]
