"""TIPSv2: both towers, whose embeddings share one space without a projection."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.tips_text import TipsText, TipsTextConfig
from dinov3seg_jax.models.tips_vision import TipsVision, TipsVisionConfig


@dataclasses.dataclass(frozen=True)
class TipsConfig:
    """Sizes of both towers, which are of one width."""

    vision: TipsVisionConfig
    text: TipsTextConfig


class Tips(nnx.Module):
    """Both towers."""

    def __init__(self, config: TipsConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.vision = TipsVision(config.vision, dtype=dtype, rngs=rngs)
        self.text = TipsText(config.text, dtype=dtype, rngs=rngs)

    def encode_text(self, tokens: Int[Array, "n length"], padding: Bool[Array, "n length"]) -> Float[Array, "n d"]:
        """Text embeddings of unit length; see `TipsText`."""
        return l2_normalize(self.text(tokens, padding))
