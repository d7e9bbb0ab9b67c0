"""TIPSv2's three layouts of one model come out alike."""

import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.convert.tables import tips
from dinov3seg_jax.convert.tables.rules import apply_rules
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import describe
from dinov3seg_jax.models.tips_text import TipsText
from dinov3seg_jax.models.tips_vision import TipsVision
from tests.convert.scenic import scenic_text, scenic_vision
from tests.parity.fixtures import SHIPPED
from tests.parity.official import arrays, described, section
from tests.parity.tips import text_config, vision_config


def shapes(create):
    return {name: leaf.shape for name, leaf in describe(create)[1].items()}


@pytest.mark.parametrize("case", ["mlp", "swiglu"])
def test_vision(case):
    values = arrays(SHIPPED / "tips_vision.npz")
    config = vision_config(described(values, "config")[case])
    state = section(values, f"{case}/w/")
    expected = shapes(lambda: TipsVision(config, dtype=np.float32, rngs=nnx.Rngs(0)))
    hub = apply_rules(state, tips.VISION, expected)
    ours = apply_rules(scenic_vision(state, config.grid, config.depth), tips.SCENIC_VISION, expected)

    folded = dict(hub, cls_first=hub["cls_first"] + hub["cls_position"], cls_position=np.zeros(config.dim))
    for layer, scale in {"attention/out": "ls1", "ffn/down": "ls2"}.items():
        gamma = hub[f"blocks/{scale}"]
        folded[f"blocks/{layer}/kernel"] = hub[f"blocks/{layer}/kernel"] * gamma[:, None]
        folded[f"blocks/{layer}/bias"] = hub[f"blocks/{layer}/bias"] * gamma
        folded[f"blocks/{scale}"] = np.ones_like(gamma)
    for name, value in folded.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, err_msg=name)


def test_text():
    values = arrays(SHIPPED / "tips_text.npz")
    config = text_config(described(values, "config")["base"])
    state = section(values, "base/w/")
    expected = shapes(lambda: TipsText(config, dtype=np.float32, rngs=nnx.Rngs(0)))
    ours = apply_rules(scenic_text(state, config.depth), tips.SCENIC_TEXT, expected)
    for name, value in apply_rules(state | {"temperature": np.float32(1)}, tips.TEXT, expected).items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_positions_of_no_square_are_refused():
    values = arrays(SHIPPED / "tips_vision.npz")
    state = section(values, "mlp/w/")
    config = vision_config(described(values, "config")["mlp"])
    expected = shapes(lambda: TipsVision(config, dtype=np.float32, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="pos_embed"):
        apply_rules(state | {"pos_embed": state["pos_embed"][:, 1:]}, tips.VISION, expected)
