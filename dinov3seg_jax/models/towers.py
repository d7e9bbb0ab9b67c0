"""Vision-language models whose two towers can see and read for the method: one row each (docs/models.md).

A vision tower takes normalised pixels and returns `VisionFeatures`; a text tower takes rows of token ids and returns
one embedding for each, in one half or two. All that is outside this file asks the row, not the name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models import clip, tips
from dinov3seg_jax.models.dinotxt import TextTower, VisionTower
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.pixels import CLIP, IMAGENET, UNCHANGED, Pixels


class Towers(NamedTuple):
    """A row."""

    halves: int  # of a text embedding: 2 where one is aligned with the class token and one with patches
    pixels: Pixels  # mean and deviation of what the vision tower takes
    vision: Callable[..., nnx.Module]  # (ModelConfig, dtype=, stream=, remat=, kernel=, rngs=)
    text: Callable[..., nnx.Module]  # the same


TOWERS: dict[str, Towers] = {
    "dinotxt": Towers(
        halves=2,
        pixels=IMAGENET,
        vision=lambda config, **options: VisionTower(config.vision, **options),
        text=lambda config, **options: TextTower(config.text, 2 * config.vision.dim, **options),
    ),
    "clip": Towers(halves=1, pixels=CLIP, vision=clip.vision_tower, text=clip.text_tower),
    "tips": Towers(halves=1, pixels=UNCHANGED, vision=tips.vision_tower, text=tips.text_tower),
}


def text_width(config: ModelConfig) -> int:
    """Width of a text embedding, all its halves together."""
    return TOWERS[config.towers].halves * config.vision.shared_dim


def unit_halves(embeddings: Float[Array, "n d"], halves: int) -> Float[Array, "n d"]:
    """Each half of each embedding at unit length."""
    parts = jnp.stack(jnp.split(embeddings, halves, axis=-1), axis=1)
    return l2_normalize(parts).reshape(embeddings.shape)


class TwoTowers(nnx.Module):
    """Both towers alone, under the names that they have in the whole model."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        row = TOWERS[config.towers]
        options: Any = {"remat": False, "kernel": config.attention, "rngs": rngs}
        options |= {"dtype": jnp.dtype(config.dtype), "stream": config.stream_dtype}
        self.halves = row.halves
        self.vision = row.vision(config, **options)
        self.text = row.text(config, **options)

    def encode_text(self, tokens: Int[Array, "n length"]) -> Float[Array, "n d"]:
        """Text embeddings, each half of unit length: [global half | local half] where there are two (§1)."""
        return unit_halves(self.text(tokens), self.halves)
