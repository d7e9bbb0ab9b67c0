"""TIPSv2's two towers, whose outputs share one space without a projection."""

from typing import Any

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.tips_text import TipsText
from dinov3seg_jax.models.tips_vision import TipsVision


def vision_tower(config: ModelConfig, **options: Any) -> TipsVision:
    """The vision tower of a model."""
    return TipsVision(config.vision, **options)


def text_tower(config: ModelConfig, **options: Any) -> TipsText:
    """The text tower of a model."""
    return TipsText(config.text, **options)
