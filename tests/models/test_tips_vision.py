import jax.numpy as jnp
import pytest
from flax import nnx

from dinov3seg_jax.config import VisionConfig
from dinov3seg_jax.models.tips_vision import TipsVision


def test_sides_that_hold_no_whole_patches_are_refused():
    tower = TipsVision(
        VisionConfig(dim=8, depth=1, heads=2, patch_size=14, grid=2), dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="28 x 30 must be multiples of 14"):
        tower.embed(jnp.zeros((1, 28, 30, 3)))
