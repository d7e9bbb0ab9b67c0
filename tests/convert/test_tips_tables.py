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
from tests.parity.fixtures import SHIPPED
from tests.parity.official import arrays, described, section
from tests.parity.tips import text_config, vision_config

NORMS, HEADS = {"scale": "weight", "bias": "bias"}, 4


def shapes(create):
    return {name: leaf.shape for name, leaf in describe(create)[1].items()}


def scenic_block(state, attention, mlp, norms, scales=(1, 1)):
    """A block's arrays in Scenic's layout, LayerScale folded in."""
    out, down = mlp[-2], mlp[-1]
    found = {}
    for number, norm in enumerate(norms):
        found |= {f"LayerNorm_{number}/{ours}": state[f"{norm}.{theirs}"] for ours, theirs in NORMS.items()}
    weights, biases = np.split(state[attention[0]], 3), np.split(state[attention[1]], 3)
    for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        found[f"MultiHeadDotProductAttention_0/{part}/kernel"] = weight.T.reshape(len(weight), HEADS, -1)
        found[f"MultiHeadDotProductAttention_0/{part}/bias"] = bias.reshape(HEADS, -1)
    kernel = (scales[0] * state[f"{out}.weight"].T).reshape(HEADS, -1, len(state[f"{out}.bias"]))
    found["MultiHeadDotProductAttention_0/out/kernel"] = kernel
    found["MultiHeadDotProductAttention_0/out/bias"] = scales[0] * state[f"{out}.bias"]
    name, inner = ("FFNSwiGluFused_0", 2) if len(mlp) == 3 and "w12" in mlp[0] else ("MlpBlock_0", 1)
    if inner == 2:
        for number in range(2):
            found[f"{name}/Dense_{number}/kernel"] = np.split(state[f"{mlp[0]}.weight"], 2)[number].T
            found[f"{name}/Dense_{number}/bias"] = np.split(state[f"{mlp[0]}.bias"], 2)[number]
    else:
        found[f"{name}/Dense_0/kernel"] = state[f"{mlp[0]}.weight"].T
        found[f"{name}/Dense_0/bias"] = state[f"{mlp[0]}.bias"]
    found[f"{name}/Dense_{inner}/kernel"] = scales[1] * state[f"{down}.weight"].T
    found[f"{name}/Dense_{inner}/bias"] = scales[1] * state[f"{down}.bias"]
    return found


@pytest.mark.parametrize("case", ["mlp", "swiglu"])
def test_vision(case):
    values = arrays(SHIPPED / "tips_vision.npz")
    config = vision_config(described(values, "config")[case])
    state = section(values, f"{case}/w/")
    expected = shapes(lambda: TipsVision(config, dtype=np.float32, rngs=nnx.Rngs(0)))
    hub = apply_rules(state, tips.VISION, expected)
    g, first, last = config.grid, "mlp.fc1" if case == "mlp" else "mlp.w12", "mlp.fc2" if case == "mlp" else "mlp.w3"
    scenic = {
        "ToTokenSequence_0/cls": np.concatenate(
            [state["cls_token"] + state["pos_embed"][:, :1], state["register_tokens"]], axis=1
        ),
        "ToTokenSequence_0/posembed_input": state["pos_embed"][:, 1:].reshape(1, g, g, -1),
        "ToTokenSequence_0/embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "ToTokenSequence_0/embedding/bias": state["patch_embed.proj.bias"],
        **{f"transformer/encoder_norm/{ours}": state[f"norm.{theirs}"] for ours, theirs in NORMS.items()},
    }
    for number in range(config.depth):
        block = section(state, f"blocks.{number}.")
        arrays_of = scenic_block(
            block,
            ("attn.qkv.weight", "attn.qkv.bias"),
            (first, "attn.proj", last),
            ("norm1", "norm2"),
            (block["ls1.gamma"], block["ls2.gamma"]),
        )
        scenic |= {f"transformer/encoderblock_{number}/{name}": value for name, value in arrays_of.items()}
    ours = apply_rules({f"encoder/{name}": value for name, value in scenic.items()}, tips.SCENIC_VISION, expected)

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
    scenic = {
        "token_emb/emb_var": state["token_embedding.weight"],
        "temperature_contrastive": np.float32(0.005),
        **{f"text_encoder_norm/{ours}": state[f"ln_final.{theirs}"] for ours, theirs in NORMS.items()},
    }
    for number in range(config.depth):
        arrays_of = scenic_block(
            section(state, f"transformer.resblocks.{number}."),
            ("attn.in_proj_weight", "attn.in_proj_bias"),
            ("mlp.c_fc", "attn.out_proj", "mlp.c_proj"),
            ("ln_1", "ln_2"),
        )
        scenic |= {f"transformer/encoderblock_{number}/{name}": value for name, value in arrays_of.items()}
    ours = apply_rules(scenic, tips.SCENIC_TEXT, expected)
    for name, value in apply_rules(state | {"temperature": np.float32(1)}, tips.TEXT, expected).items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_positions_of_no_square_are_refused():
    values = arrays(SHIPPED / "tips_vision.npz")
    state = section(values, "mlp/w/")
    config = vision_config(described(values, "config")["mlp"])
    expected = shapes(lambda: TipsVision(config, dtype=np.float32, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="pos_embed"):
        apply_rules(state | {"pos_embed": state["pos_embed"][:, 1:]}, tips.VISION, expected)
