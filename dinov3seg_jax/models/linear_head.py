"""DINOv3's linear segmentation head (its specification, section 12.1): batch normalisation and one dense layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.dinotxt import VisionTower
from dinov3seg_jax.models.layers import NORM_EPSILON, constant, normal
from dinov3seg_jax.models.pixels import IMAGENET, SAT493M, normalize_pixels

CHANNEL_DROPOUT = 0.1
MOMENTUM = 0.9  # of the running statistics
INITIAL_DEVIATION = 0.01
PIXELS = {"lvd1689m": IMAGENET, "sat493m": SAT493M}  # of the backbone's pre-training


class LinearHead(nnx.Module):
    """From patch features to logits, patch by patch."""

    def __init__(self, inputs: int, classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(
            inputs,
            momentum=MOMENTUM,
            epsilon=NORM_EPSILON,
            use_fast_variance=False,
            bias_init=constant(0),
            scale_init=constant(1),
            dtype=dtype,
            rngs=rngs,
        )
        self.classifier = nnx.Linear(
            inputs, classes, kernel_init=normal(INITIAL_DEVIATION), bias_init=constant(0), dtype=dtype, rngs=rngs
        )

    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w t"]:
        """Logits by the running statistics."""
        return self.classifier(self.norm(features, use_running_average=True))

    def train_logits(self, key: Array, features: Float[Array, "b h w c"]) -> Float[Array, "b h w t"]:
        """Logits by the batch's own statistics, with which the running ones are updated in place.

        Before that each channel of each image is dropped with a probability of `CHANNEL_DROPOUT`.
        """
        kept = jax.random.bernoulli(key, 1 - CHANNEL_DROPOUT, (features.shape[0], 1, 1, features.shape[3]))
        return self.classifier(self.norm(features * kept / (1 - CHANNEL_DROPOUT), use_running_average=False))


class LinearProbe(nnx.Module):
    """A backbone and the head. Images are RGB in [0, 1]; the classes are those it was trained on, in their order."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.frozen_vision_blocks = self.frozen_text_blocks = self.frozen_sam_blocks = 0
        dtype = jnp.dtype(config.dtype)
        backbone = dataclasses.replace(config.vision, head_blocks=0)
        options: Any = {"remat": config.remat, "kernel": config.attention, "rngs": rngs}
        self.vision = VisionTower(backbone, dtype=dtype, stream=config.stream_dtype, **options)
        seen = max(len(config.linear.layers), 1)
        self.linear = LinearHead(seen * config.vision.dim, config.linear.classes, dtype=dtype, rngs=rngs)

    def encode(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        """The chosen layers' normalised patches, side by side."""
        pixels = normalize_pixels(images, PIXELS[self.config.linear.pixels])
        layers = self.vision.backbone(pixels, layers=self.config.linear.layers, frozen_blocks=self.frozen_vision_blocks)
        return jnp.concatenate([layer.patches for layer in layers], axis=-1)

    def __call__(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b t h w"]:
        """Logits on the patch grid; rows and columns beyond the last whole patch do not count."""
        return jnp.moveaxis(self.linear(self.encode(images)), 3, 1)

    def train_logits(self, key: Array, images: Float[Array, "b height width 3"]) -> Float[Array, "b t h w"]:
        """The same as `LinearHead.train_logits` computes them."""
        return jnp.moveaxis(self.linear.train_logits(key, self.encode(images)), 3, 1)
