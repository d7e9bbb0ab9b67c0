"""TIPSv2's reference files as our models."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3seg_jax.config import ModelConfig, TextConfig, VisionConfig
from dinov3seg_jax.convert.tables import tips as table
from dinov3seg_jax.models.tips_text import TipsText
from dinov3seg_jax.models.tips_vision import TipsVision
from dinov3seg_jax.models.towers import TwoTowers
from tests.parity.official import filled, section


def vision_config(official: Mapping[str, Any]) -> VisionConfig:
    """The keyword arguments of the official class, as our options."""
    return VisionConfig(
        dim=official["embed_dim"],
        depth=official["depth"],
        heads=official["num_heads"],
        ffn=official["ffn_layer"].removesuffix("fused"),
        ffn_ratio=int(official["embed_dim"] * official["mlp_ratio"]) / official["embed_dim"],  # whole channels
        patch_size=official["patch_size"],
        grid=official["img_size"] // official["patch_size"],
        storage_tokens=0,
        head_blocks=0,
    )


def text_config(official: Mapping[str, Any]) -> TextConfig:
    """The keyword arguments of the official class, as our options."""
    return TextConfig(
        dim=official["hidden_size"],
        depth=official["num_layers"],
        heads=official["num_heads"],
        ffn_ratio=official["mlp_dim"] / official["hidden_size"],
        vocab_size=official["vocab_size"],
        context_length=64,
    )


def model_config(official: Mapping[str, Any], tokenizer: str = "") -> ModelConfig:
    """Both towers."""
    return ModelConfig(
        towers="tips",
        tokenizer=tokenizer,
        vision=vision_config(official["vision"]),
        text=text_config(official["text"]),
    )


def vision_tower(official: Mapping[str, Any], values: Mapping[str, np.ndarray], rows=table.VISION) -> TipsVision:
    """The vision tower with a file's weights."""
    config = vision_config(official)
    return filled(lambda: TipsVision(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), section(values, "w/"), rows)


def text_tower(official: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> TipsText:
    """The text tower with a file's weights."""
    config = text_config(official)
    return filled(lambda: TipsText(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), section(values, "w/"), table.TEXT)


def both_towers(official: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> TwoTowers:
    """Both towers from weights under the hub's names."""
    config = model_config(official)
    return filled(lambda: TwoTowers(config, rngs=nnx.Rngs(0)), section(values, "w/"), table.HUB)
