"""CAFe-DINO (rfaulk/DINO_Soars, arXiv 2605.03175): dinov3.txt with a head for remote sensing.

The cosines of backbone patches and the patch halves of texts are refined class by class. AnyUp brings them to the size
of the picture, with weights that depend on all classes and their order.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.blocks import run_stack, stack
from dinov3seg_jax.models.cafedino_blocks import Layer
from dinov3seg_jax.models.correlation import CorrelationEmbedding, correlate
from dinov3seg_jax.models.dinotxt import TextTower, VisionTower
from dinov3seg_jax.models.early_refinement import EarlyRefinement
from dinov3seg_jax.models.functions import gelu
from dinov3seg_jax.models.layers import NORM_EPSILON, Conv, Linear, constant
from dinov3seg_jax.models.pixels import IMAGENET, normalize_pixels

REFINED_AT_ONCE = 64  # classes on the patch grid
UPSAMPLED_AT_ONCE = 8  # classes at the size of the picture


class Moments(NamedTuple):
    """Mean and biased variance of each channel."""

    mean: Float[Array, " c"]
    var: Float[Array, " c"]


def pooled(parts: Moments) -> Moments:
    """The moments of several equally large sets together, each a row of `parts`."""
    mean = parts.mean.mean(axis=0)
    return Moments(mean, parts.var.mean(axis=0) + ((parts.mean - mean) ** 2).mean(axis=0))


class Reduction(nnx.Module):
    """From a class's upsampled channels to its logit, pixel by pixel: three dense layers and two batch norms."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dense1 = Linear(dim, dim // 2, dtype=dtype, rngs=rngs)
        self.norm1 = _batch_norm(dim // 2, dtype, rngs)
        self.dense2 = Linear(dim // 2, dim // 4, dtype=dtype, rngs=rngs)
        self.norm2 = _batch_norm(dim // 4, dtype, rngs)
        self.dense3 = Linear(dim // 4, 1, dtype=dtype, rngs=rngs)

    def stored(self) -> tuple[Moments, Moments]:
        """What the batch norms saw on average in training."""
        first, second = (Moments(norm.mean[...], norm.var[...]) for norm in (self.norm1, self.norm2))
        return first, second

    def middle(self, x: Float[Array, "*n c"], first: Moments) -> Float[Array, "*n c2"]:
        """What the second batch norm sees, of what the first one does."""
        return self.dense2(gelu(_standardize(self.norm1, x, first)))

    def logits(self, x: Float[Array, "*n c"], moments: tuple[Moments, Moments]) -> Float[Array, "*n"]:
        """The logits, of what the first batch norm sees."""
        return self.dense3(gelu(_standardize(self.norm2, self.middle(x, moments[0]), moments[1])))[..., 0]


def _batch_norm(dim: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(dim, bias_init=constant(0), scale_init=constant(1), dtype=dtype, rngs=rngs)


def _standardize(norm: nnx.BatchNorm, x: Array, moments: Moments) -> Array:
    assert norm.scale is not None
    assert norm.bias is not None
    gain = norm.scale[...] * jax.lax.rsqrt(moments.var + NORM_EPSILON)
    return ((x - moments.mean) * gain + norm.bias[...]).astype(x.dtype)


class Patches(NamedTuple):
    """What is known of pictures before any class is."""

    features: Float[Array, "b h w d"]  # the backbone's
    appearance: Float[Array, "b h w a"]  # the same, projected, that guide


class CafeDino(nnx.Module):
    """The whole model. Images are RGB in [0, 1]."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.frozen_vision_blocks = self.frozen_text_blocks = self.frozen_sam_blocks = 0
        options, dtype = config.cafedino, jnp.dtype(config.dtype)
        towers: Any = {"dtype": dtype, "stream": config.stream_dtype, "remat": config.remat, "rngs": rngs}
        towers["kernel"] = config.attention
        self.vision = VisionTower(config.vision, **towers)
        self.text = TextTower(config.text, 2 * config.vision.dim, **towers)
        self.embed_correlation = CorrelationEmbedding(1, options.dim, dtype=dtype, rngs=rngs)
        self.project_text = Linear(config.vision.dim, options.dim, dtype=dtype, rngs=rngs)
        self.project_appearance = Conv(config.vision.dim, options.dim, 3, dtype=dtype, rngs=rngs)
        self.layers = stack(lambda rngs: Layer(options, dtype=dtype, rngs=rngs), options.layers, rngs)
        self.early = EarlyRefinement(config.early, dtype=dtype, rngs=rngs)
        self.reduction = Reduction(options.dim, dtype=dtype, rngs=rngs)

    def encode_text(self, tokens: Int[Array, "n length"]) -> Float[Array, "n d2"]:
        """Text embeddings as they are: those of a class are averaged first and only then brought to length 1."""
        return self.text(tokens, frozen_blocks=self.frozen_text_blocks)

    def encode(self, images: Float[Array, "b height width 3"]) -> Patches:
        """The backbone's patches after its last norm; the vision head is not used."""
        (last,) = self.vision.backbone(normalize_pixels(images, IMAGENET), frozen_blocks=self.frozen_vision_blocks)
        return Patches(last.patches, jax.nn.relu(self.project_appearance(last.patches)))

    def __call__(
        self,
        images: Float[Array, "b height width 3"],
        text: Float[Array, "t d"],
        guide: Float[Array, "b height2 width2 3"] | None = None,
    ) -> Float[Array, "b t height width"]:
        """Logits for each pixel of the images, or of the pictures that guide the upsampling in their place.

        Args:
            images: their sides are multiples of the patch size.
            text: the patch halves of the classes' embeddings. Their number and order changes all logits a little.
            guide: of another size than the images, if that is wanted.
        """
        return self.decode(images if guide is None else guide, self.refine(self.encode(images), text))

    def refine(self, patches: Patches, text: Float[Array, "t d"]) -> Float[Array, "t b h w a"]:
        """The class maps on the patch grid."""
        cosines = correlate(patches.features, text[None], halves=1)
        projected = jax.nn.relu(self.project_text(text))

        def layers(cosines: Float[Array, "c b h w 1"], projected: Float[Array, "c a"]) -> Float[Array, "c b h w a"]:
            own = jnp.broadcast_to(projected, (cosines.shape[1], *projected.shape))
            x = self.embed_correlation(jnp.moveaxis(cosines, 0, 1))
            depth = self.config.cafedino.layers
            x = run_stack(self.layers, x, lambda layer, x: layer(x, patches.appearance, own), stop=depth)
            return jnp.moveaxis(x, 1, 0)

        cosines = jnp.moveaxis(cosines, 1, 0)
        if self.config.cafedino.linear:
            return layers(cosines, projected)
        one_by_one = lambda one: layers(one[0][None], one[1][None])[0]  # noqa: E731
        return jax.lax.map(one_by_one, (cosines, projected), batch_size=REFINED_AT_ONCE)

    def decode(
        self, guide: Float[Array, "b height width 3"], maps: Float[Array, "t b h w a"]
    ) -> Float[Array, "b t height width"]:
        """Logits at the size of the guiding pictures, for a few classes at a time."""
        weights, reduced = self.weigh(guide, maps)
        moments = self.moments(weights, reduced) if self.config.cafedino.batch_statistics else self.reduction.stored()
        logits = _for_each_class(weights, reduced, lambda pixels: self.reduction.logits(pixels, moments))
        return jnp.moveaxis(logits, 0, 1).reshape(*guide.shape[:1], len(maps), *guide.shape[1:3])

    def weigh(
        self, guide: Float[Array, "b height width 3"], maps: Float[Array, "t b h w a"]
    ) -> tuple[Float[Array, "b pixels cells"], Float[Array, "t b cells a2"]]:
        """How much each cell counts for each pixel, and what is averaged so.

        Each pixel's weights sum to 1, so the first dense layer may come before the average, where it costs less.
        """
        t, b, h, w, a = maps.shape
        # Channel after channel, each of all classes: AnyUp's weights depend on that order.
        volume = jnp.transpose(maps, (1, 2, 3, 4, 0)).reshape(b, h, w, a * t)
        weights = self.early.attention_weights(
            normalize_pixels(guide, IMAGENET), volume, (guide.shape[1], guide.shape[2])
        )
        return weights, self.reduction.dense1(maps).reshape(t, b, h * w, -1)

    def moments(
        self, weights: Float[Array, "b pixels cells"], reduced: Float[Array, "t b cells c"]
    ) -> tuple[Moments, Moments]:
        """What the two batch norms see of these pictures and classes."""

        def of(pixels: Float[Array, "b pixels c"]) -> Moments:
            return Moments(pixels.mean(axis=(0, 1)), pixels.var(axis=(0, 1)))

        first = pooled(_for_each_class(weights, reduced, of))
        return first, pooled(_for_each_class(weights, reduced, lambda pixels: of(self.reduction.middle(pixels, first))))


def _for_each_class(
    weights: Float[Array, "b pixels cells"], reduced: Float[Array, "t b cells c"], function: Any
) -> Any:
    """`function` of each class's pixels, [b, pixels, c]; only a few classes are upsampled at once."""

    def of_one(cells: Float[Array, "b cells c"]) -> Any:
        return function(jnp.einsum("bqk,bkc->bqc", weights.astype(cells.dtype), cells))

    return jax.lax.map(of_one, reduced, batch_size=UPSAMPLED_AT_ONCE)
