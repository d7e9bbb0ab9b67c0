"""TIPSv2's reference files as our models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from dinov3seg_jax.convert.tables import tips as table
from dinov3seg_jax.models.tips import Tips, TipsConfig
from dinov3seg_jax.models.tips_text import TipsText, TipsTextConfig
from dinov3seg_jax.models.tips_vision import TipsVision, TipsVisionConfig
from tests.parity.official import filled, section


def vision_config(official: Mapping[str, Any]) -> TipsVisionConfig:
    """The keyword arguments of the official class, as our options."""
    dim, ffn = official["embed_dim"], official["ffn_layer"].removesuffix("fused")
    hidden = int(dim * official["mlp_ratio"])
    return TipsVisionConfig(
        dim=dim,
        depth=official["depth"],
        heads=official["num_heads"],
        hidden=hidden if ffn == "mlp" else -(-int(hidden * 2 / 3) // 8) * 8,
        ffn=ffn,
        patch_size=official["patch_size"],
        grid=official["img_size"] // official["patch_size"],
    )


def text_config(official: Mapping[str, Any]) -> TipsTextConfig:
    """The keyword arguments of the official class, as our options."""
    return TipsTextConfig(
        dim=official["hidden_size"],
        depth=official["num_layers"],
        heads=official["num_heads"],
        hidden=official["mlp_dim"],
        vocab_size=official["vocab_size"],
    )


def vision_tower(official: Mapping[str, Any], values: Mapping[str, np.ndarray], rows=table.VISION) -> TipsVision:
    """The vision tower with a file's weights."""
    return filled(lambda: TipsVision(vision_config(official), rngs=nnx.Rngs(0)), section(values, "w/"), rows)


def text_tower(official: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> TipsText:
    """The text tower with a file's weights."""
    return filled(lambda: TipsText(text_config(official), rngs=nnx.Rngs(0)), section(values, "w/"), table.TEXT)


def both_towers(official: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> Tips:
    """Both towers from weights under the hub's names."""
    config = TipsConfig(vision_config(official["vision"]), text_config(official["text"]))
    return filled(lambda: Tips(config, rngs=nnx.Rngs(0)), section(values, "w/"), table.HUB)
