"""CAT-Seg's aggregator put together from this project's parts, with as many prompts as the reference has."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3seg_jax.config import DecoderConfig, LateRefinementConfig
from dinov3seg_jax.models.correlation import CorrelationEmbedding, correlate
from dinov3seg_jax.models.decoder import Decoder
from dinov3seg_jax.models.dinov3seg import refine_best
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.late_refinement import ClassRefinementBlock, LateRefinement, average_pool, resize_aligned
from dinov3seg_jax.models.layers import Linear
from dinov3seg_jax.models.semantic_prior import ConvRelu


def late_config(official: Mapping[str, Any]) -> LateRefinementConfig:
    """The official constructor's arguments as our options; CAT-Seg always doubles the residual."""
    return LateRefinementConfig(
        layers=official.get("num_layers", 1),
        dim=official.get("hidden_dim") or official["dim"],
        heads=official["nheads"],
        window=official.get("window_size", 1),
        class_attention=official.get("attention_type", "linear"),
        doubled_residual=True,
        pad_classes=official.get("pad_len", 0),
        max_classes=official.get("pad_len", 0),
    )


def class_block(block: ClassRefinementBlock, x: jax.Array, text: jax.Array | None, pooling: list[int]) -> jax.Array:
    """The block with a pooling that may differ per axis, which our option cannot say."""
    return x + resize_aligned(block.mix(average_pool(x, *pooling), text), *x.shape[2:4])


class Projections(nnx.Module):
    """The three projected guidance maps, under the names that they have in the whole model."""

    def __init__(self, official: Mapping[str, Any], *, rngs: nnx.Rngs):
        if official["appearance_guidance_dim"]:
            self.project_appearance = ConvRelu(
                official["appearance_guidance_dim"],
                official["appearance_guidance_proj_dim"],
                dtype=jnp.float32,
                rngs=rngs,
            )
        widths = zip(official["decoder_guidance_dims"], official["decoder_guidance_proj_dims"], strict=True)
        middle, fine = (ConvRelu(*pair, dtype=jnp.float32, rngs=rngs) for pair in widths)
        self.project_middle, self.project_fine = middle, fine


class Aggregator(nnx.Module):
    """Under the names of the whole model, so that the same rules fill it."""

    def __init__(self, official: Mapping[str, Any], *, rngs: nnx.Rngs):
        self.limit = official["pad_len"]
        self.pooling = official["pooling_size"]
        config = late_config(official)
        appearance = official["appearance_guidance_proj_dim"] if official["appearance_guidance_dim"] else 0
        text = official["text_guidance_proj_dim"]
        decoder = DecoderConfig(
            dims=tuple(official["decoder_dims"]), guidance_dims=tuple(official["decoder_guidance_proj_dims"])
        )
        self.embed_correlation = CorrelationEmbedding(
            official["prompt_channel"], config.dim, dtype=jnp.float32, rngs=rngs
        )
        self.guidance = Projections(official, rngs=rngs)
        self.project_text = Linear(official["text_guidance_dim"], text, dtype=jnp.float32, rngs=rngs)
        self.late = LateRefinement(config, appearance, text, dtype=jnp.float32, rngs=rngs)
        self.decoder = Decoder(config.dim, decoder, guided=True, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, features: jax.Array, text: jax.Array, appearance: list[jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [b, t, 4h, 4w], and the steps before them, channels last, by their official names.

        Args:
            features: [b, h, w, c].
            text: [b, t, prompts, c].
            appearance: guidance at one, two and four times the grid.
        """
        correlation = jnp.concatenate(
            [correlate(features, jnp.tile(text[:, :, p], 2), "local") for p in range(text.shape[2])], axis=-1
        )
        found = {"correlation": jnp.moveaxis(correlation, -1, 1)}
        truncated = bool(self.limit) and text.shape[1] > self.limit
        prompts = l2_normalize(text) if truncated else text
        mean = l2_normalize(prompts.mean(axis=2))
        guide = getattr(self.guidance, "project_appearance", None)
        first = None if guide is None else guide(appearance[0])
        middle, fine = self.guidance.project_middle(appearance[1]), self.guidance.project_fine(appearance[2])
        found |= {
            "decoder_guidance_projection.0": jnp.moveaxis(middle, -1, 1),
            "decoder_guidance_projection.1": jnp.moveaxis(fine, -1, 1),
        }
        if first is not None:
            found["guidance_projection"] = jnp.moveaxis(first, -1, 1)

        def refine(correlation: jax.Array, mean: jax.Array, class_mask: jax.Array | None) -> jax.Array:
            projected = jax.nn.relu(self.project_text(mean))
            x = self.embed_correlation(correlation)
            found["text_guidance_projection"] = projected
            found["conv1"] = jnp.moveaxis(x, -1, 2).reshape(-1, x.shape[-1], *x.shape[2:4])
            for number, (spatial, classes) in enumerate(zip(self.late.spatial, self.late.classes, strict=True)):
                x = spatial(x, first)
                found[f"layers.{number}.swin_block"] = jnp.moveaxis(x, -1, 1)
                x = class_block(classes, x, projected, self.pooling)
                found[f"layers.{number}.attention"] = jnp.moveaxis(x, -1, 1)
            for name, stage, guidance in (
                ("decoder1", self.decoder.stage1, middle),
                ("decoder2", self.decoder.stage2, fine),
            ):
                y = stage(x if name == "decoder1" else y, guidance)
                found[name] = jnp.moveaxis(y, -1, 2).reshape(-1, y.shape[-1], *y.shape[2:4])
            return self.decoder(x, (middle, fine))

        logits = (
            refine_best(refine, correlation, mean, None, self.limit) if truncated else refine(correlation, mean, None)
        )
        return logits, found
