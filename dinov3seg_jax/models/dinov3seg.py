"""The paper's figure as code: encoders, early refinement, correlation, late refinement, decoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.correlation import CorrelationEmbedding, CorrelationSkip, channels_of, correlate
from dinov3seg_jax.models.decoder import Decoder
from dinov3seg_jax.models.early_refinement import EarlyRefinement
from dinov3seg_jax.models.late_refinement import LateRefinement
from dinov3seg_jax.models.layers import Linear
from dinov3seg_jax.models.mesh import BY_CLASS, BY_EXAMPLE, fill_classes, on_each_device, shares_classes
from dinov3seg_jax.models.pixels import normalize_pixels
from dinov3seg_jax.models.sam import SamEncoder
from dinov3seg_jax.models.scene import REJECTED_LOGIT, ImageFeatures, PriorMaps
from dinov3seg_jax.models.semantic_prior import Guidance, GuidanceProjection
from dinov3seg_jax.models.towers import TOWERS, Towers, text_width, unit_halves


class Output(NamedTuple):
    """The output of the model, and the features it was made from, which training may supervise."""

    logits: Float[Array, "b t h4 w4"]  # per class; a sigmoid makes scores of them
    refined: Float[Array, "b h2 w2 d"]  # patches after the early refinement, text-aligned


class SegmentationModel(nnx.Module):
    """dinov3.seg. Images are RGB in [0, 1]; class lists are rows of text embeddings."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.frozen_vision_blocks = self.frozen_text_blocks = self.frozen_sam_blocks = 0
        dtype = jnp.dtype(config.dtype)
        late = config.late.dim
        tower: Any = {"dtype": dtype, "stream": config.stream_dtype, "remat": config.remat, "rngs": rngs}
        self.vision = self.towers.vision(config, kernel=config.attention, **tower)
        self.text = self.towers.text(config, kernel=config.attention, **tower)
        if config.early.enabled:
            self.early = EarlyRefinement(config.early, dtype=dtype, rngs=rngs)
        channels = len(channels_of(config.correlation, self.towers.halves))
        self.embed_correlation = CorrelationEmbedding(
            channels, late, dtype=dtype, stream=config.class_maps_dtype, rngs=rngs
        )
        if config.spe == "sam":
            self.sam = SamEncoder(config.sam, **tower)
        if config.spe != "none":
            self.guidance = GuidanceProjection(config, dtype=dtype, rngs=rngs)
        if config.late.enabled:
            appearance = 0 if config.spe == "none" else config.late.appearance_dim or late
            text = config.late.text_dim or late
            self.project_text = Linear(text_width(config), text, dtype=dtype, rngs=rngs)
            self.late = LateRefinement(config.late, appearance, text, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(late, config.decoder, guided=config.spe != "none", dtype=dtype, rngs=rngs)
        if config.decoder.correlation_skip:
            self.correlation_skip = CorrelationSkip()

    @property
    def towers(self) -> Towers:
        """What is known of its two towers."""
        return TOWERS[self.config.towers]

    def encode_text(self, tokens: Int[Array, "n length"]) -> Float[Array, "n d2"]:
        """Text embeddings, each half of unit length: [global half | local half] where there are two (§1)."""
        return unit_halves(self.text(tokens, frozen_blocks=self.frozen_text_blocks), self.towers.halves)

    def encode_image(self, images: Float[Array, "b height width 3"]) -> ImageFeatures:
        """Text-aligned patches and the maps of the Semantic Prior Encoder."""
        return self.encode_patches(images, with_prior=True)

    def encode_patches(self, images: Float[Array, "b height width 3"], *, with_prior: bool = False) -> ImageFeatures:
        """Text-aligned patches; the prior only if asked for (windows do not need theirs)."""
        pixels = normalize_pixels(images, self.towers.pixels)
        features = self.vision(pixels, frozen_blocks=self.frozen_vision_blocks)
        patches = features.patches if self.config.patch_features == "head" else features.backbone_patches
        prior = None
        if with_prior and self.config.spe == "vision":
            prior = PriorMaps(patches, *features.intermediate)
        elif with_prior and self.config.spe == "sam":
            prior = PriorMaps(*self.sam(normalize_pixels(images), frozen_blocks=self.frozen_sam_blocks))
        return ImageFeatures(patches, prior)

    def segment(
        self,
        images: Float[Array, "b height width 3"],
        features: ImageFeatures,
        text: Float[Array, "b t d2"],
        class_mask: Bool[Array, "b t"] | None = None,
    ) -> Output:
        """Early refinement, correlation, late refinement, decoder.

        Args:
            images: what the features were made from; guides the early refinement.
            features: of `encode_image`, or merged from windows.
            text: embeddings of each image's class list.
            class_mask: False for entries that only fill the list up to a static length.
        """
        refined = self.refine_early(images, features.patches)
        correlation = self.correlate(refined, text)
        guidance = self.project_guidance(features.prior, refined.shape[1], refined.shape[2])

        def refine(correlation: Array, text: Array, class_mask: Array | None) -> Array:
            return self.refine_late_and_decode(correlation, guidance, text, class_mask)

        limit = self.config.late.max_classes
        if limit and text.shape[1] > limit:
            return Output(refine_best(refine, correlation, text, class_mask, limit), refined)
        return Output(refine(correlation, text, class_mask), refined)

    def __call__(
        self,
        images: Float[Array, "b height width 3"],
        text: Float[Array, "b t d2"],
        class_mask: Bool[Array, "b t"] | None = None,
    ) -> Output:
        """Segment whole images in one view."""
        return self.segment(images, self.encode_image(images), text, class_mask)

    def refine_early(
        self, images: Float[Array, "b height width 3"], patches: Float[Array, "b h w d"]
    ) -> Float[Array, "b h2 w2 d"]:
        """§2; without it, the patches as they are."""
        if not self.config.early.enabled:
            return patches
        factor = self.config.early.factor
        grid = (patches.shape[1] * factor, patches.shape[2] * factor)
        return self.early(normalize_pixels(images), patches, grid)

    def correlate(self, refined: Float[Array, "b h w d"], text: Float[Array, "b t d2"]) -> Float[Array, "b t h w c"]:
        """§3: the cosines of refined patches with a class list."""
        return correlate(refined, text, self.config.correlation, self.towers.halves)

    def project_guidance(self, prior: PriorMaps | None, height: int, width: int) -> Guidance | None:
        """The Semantic Prior Encoder's maps on the grids of the class maps."""
        return None if prior is None else self.guidance(prior, height, width)

    def refine_late_and_decode(
        self,
        correlation: Float[Array, "b t h w c"],
        guidance: Guidance | None,
        text: Float[Array, "b t d2"],
        class_mask: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h4 w4"]:
        """§3's embedding, §4 and §5; devices that share the class list out do their own classes (see `models.mesh`).

        Where these do not share a list out evenly, classes that are masked fill it up.
        """
        if not shares_classes():
            return self._refine_own(correlation, guidance, text, class_mask)
        b, t = correlation.shape[:2]
        filled = fill_classes(correlation)
        if class_mask is None and filled.shape[1] > t:
            class_mask = jnp.ones((b, t), bool)
        mask = None if class_mask is None else fill_classes(class_mask)
        refine = on_each_device(self._refine_own, (BY_CLASS, BY_EXAMPLE, BY_CLASS, BY_CLASS), BY_CLASS)
        return refine(filled, guidance, fill_classes(text), mask)[:, :t]

    def _refine_own(
        self, correlation: Array, guidance: Guidance | None, text: Array, class_mask: Array | None
    ) -> Array:
        x = self.embed_correlation(correlation)
        if self.config.late.enabled:
            projected = jax.nn.relu(self.project_text(text))
            x = self.late(x, None if guidance is None else guidance.appearance, projected, class_mask)
        logits = self.decoder(x, None if guidance is None else guidance.decoder)
        if self.config.decoder.correlation_skip:
            logits = logits + self.correlation_skip(correlation, *logits.shape[2:])
        return logits


def refine_best(
    refine: Callable[[Array, Array, Array | None], Array],
    correlation: Float[Array, "b t h w c"],
    text: Float[Array, "b t d2"],
    class_mask: Bool[Array, "b t"] | None,
    limit: int,
) -> Float[Array, "b t h4 w4"]:
    """CAT-Seg's truncation: only the classes of highest correlation anywhere in the image are refined.

    Args:
        refine: (correlation, text, class_mask) of the classes kept -> their logits.
        correlation, text, class_mask: of all classes.
        limit: how many are kept; the others' logits are -100.
    """
    score = correlation.max(axis=(2, 3, 4))
    if class_mask is not None:
        score = jnp.where(class_mask, score, -jnp.inf)
    _, kept = jax.lax.top_k(score, limit)

    def pick(x: Array) -> Array:
        return jnp.take_along_axis(x, kept.reshape(kept.shape + (1,) * (x.ndim - 2)), axis=1)

    logits = refine(pick(correlation), pick(text), None if class_mask is None else pick(class_mask))
    b, t = text.shape[:2]
    everything = jnp.full((b, t, *logits.shape[2:]), REJECTED_LOGIT, logits.dtype)
    return everything.at[jnp.arange(b)[:, None], kept].set(logits)
