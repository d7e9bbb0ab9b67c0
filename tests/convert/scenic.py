"""TIPSv2's towers in Scenic's layout, made of their PyTorch states."""

from collections.abc import Mapping

import numpy as np

from tests.parity.official import section

NORMS, HEADS = {"scale": "weight", "bias": "bias"}, 4
State = Mapping[str, np.ndarray]


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


def scenic_vision(state: State, grid: int, depth: int) -> dict[str, np.ndarray]:
    """A vision tower; LayerScale and the class token's position are folded in."""
    plain = "blocks.0.mlp.fc1.weight" in state
    first, last = ("mlp.fc1", "mlp.fc2") if plain else ("mlp.w12", "mlp.w3")
    scenic = {
        "ToTokenSequence_0/cls": np.concatenate(
            [state["cls_token"] + state["pos_embed"][:, :1], state["register_tokens"]], axis=1
        ),
        "ToTokenSequence_0/posembed_input": state["pos_embed"][:, 1:].reshape(1, grid, grid, -1),
        "ToTokenSequence_0/embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "ToTokenSequence_0/embedding/bias": state["patch_embed.proj.bias"],
        **{f"transformer/encoder_norm/{ours}": state[f"norm.{theirs}"] for ours, theirs in NORMS.items()},
    }
    for number in range(depth):
        block = section(state, f"blocks.{number}.")
        arrays_of = scenic_block(
            block,
            ("attn.qkv.weight", "attn.qkv.bias"),
            (first, "attn.proj", last),
            ("norm1", "norm2"),
            (block["ls1.gamma"], block["ls2.gamma"]),
        )
        scenic |= {f"transformer/encoderblock_{number}/{name}": value for name, value in arrays_of.items()}
    return {f"encoder/{name}": value for name, value in scenic.items()}


def scenic_text(state: State, depth: int) -> dict[str, np.ndarray]:
    """A text tower."""
    scenic = {
        "token_emb/emb_var": state["token_embedding.weight"],
        "temperature_contrastive": np.float32(0.005),
        **{f"text_encoder_norm/{ours}": state[f"ln_final.{theirs}"] for ours, theirs in NORMS.items()},
    }
    for number in range(depth):
        arrays_of = scenic_block(
            section(state, f"transformer.resblocks.{number}."),
            ("attn.in_proj_weight", "attn.in_proj_bias"),
            ("mlp.c_fc", "attn.out_proj", "mlp.c_proj"),
            ("ln_1", "ln_2"),
        )
        scenic |= {f"transformer/encoderblock_{number}/{name}": value for name, value in arrays_of.items()}
    return scenic
