"""The references are sharp: one wrong detail in an otherwise right model exceeds the tolerance."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import catseg, dinov3
from convert.rules import Fill
from dinov3seg_jax.models import late_refinement, layers
from dinov3seg_jax.models.late_refinement import SpatialRefinementBlock
from dinov3seg_jax.models.rope import rope_periods
from dinov3seg_jax.models.vit import VisionTransformer
from tests.parity.aggregator import late_config
from tests.parity.official import arrays, channels_last, described, filled, run, section, state_dict, vision_config

SHIPPED = Path(__file__).parents[1] / "fixtures"
CASE = "r48x96"
TOLERANCE = 5e-5
BLOCK_TOLERANCE = 3e-6


def vit_error(name: str, *, epsilon: float | None = None, without: str = "", rows=dinov3.RULES) -> float:
    """Largest error of the final patches, with one detail changed."""
    values = arrays(SHIPPED / f"{name}.npz")
    config = vision_config(described(values, "meta/config_json")["config"])
    source = {key: value for key, value in state_dict(values).items() if not without or not key.endswith(without)}
    vit = filled(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)), source, rows)
    for _, module in nnx.iter_modules(vit):
        if epsilon is not None and isinstance(module, nnx.LayerNorm):
            module.epsilon = epsilon
    (ours,) = run(vit, lambda vit, image: vit(image), channels_last(values[f"in/{CASE}/image"]))
    official = values[f"out/{CASE}/x_norm_patchtokens"]
    return float(np.abs(np.asarray(ours.patches).reshape(official.shape) - official).max())


def test_nothing_changed():
    assert vit_error("vit_tiny_untied_zeromask") < TOLERANCE


@pytest.mark.parametrize("name", ["vit_tiny_7bstyle", "vit_head64"])
def test_epsilon(name):
    assert vit_error(name, epsilon=1e-6) > 100 * TOLERANCE


def test_approximate_gelu(monkeypatch):
    monkeypatch.setattr(layers, "gelu", lambda x: jax.nn.gelu(x, approximate=True))
    assert vit_error("vit_tiny_untied_zeromask") > TOLERANCE


def test_bias_mask_not_applied():
    assert vit_error("vit_tiny_untied_zeromask", without="bias_mask") > 1000 * TOLERANCE


def test_periods_recomputed():
    rows = (*dinov3.RULES, Fill("periods", lambda shape: rope_periods(4 * shape[0], 100.0)))
    assert vit_error("vit_tiny_untied_zeromask", without="periods", rows=rows) > 100 * TOLERANCE


@pytest.mark.parametrize("masked", [True, False])
def test_shift_mask_missing(masked, monkeypatch):
    values = arrays(SHIPPED / "catseg_spatial_block.npz")
    config = described(values, "config")["nonsquare_shift"]
    values = section(values, "nonsquare_shift/")
    if not masked:
        monkeypatch.setattr(late_refinement, "shifted_window_mask", lambda *_: None)
    block = filled(
        lambda: SpatialRefinementBlock(
            late_config(config), config["appearance_guidance_dim"], dtype=jnp.float32, rngs=nnx.Rngs(0)
        ),
        section(values, "w/"),
        catseg.SPATIAL_BLOCK,
    )
    x, guidance = values["in/x"].transpose(0, 2, 3, 4, 1), channels_last(values["in/guidance"])
    official = values["out/y"].transpose(0, 2, 3, 4, 1)
    ours = run(block, lambda block, x, guidance: block(x, guidance), x, guidance)
    error = np.abs(np.asarray(ours) - official).max() / np.abs(official).max()
    assert (error < BLOCK_TOLERANCE) == masked
