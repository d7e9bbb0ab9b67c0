"""The upsampling decoder (§5): two guided stages on each class's map by itself, then one logit."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import DecoderConfig
from dinov3seg_jax.models.layers import Conv, GroupNorm, Upsample, over_batch, recomputed


class ConvNormRelu(nnx.Module):
    """3 x 3 convolution without bias, group norm (16 channels a group), ReLU.

    A convolution of a concatenation is a sum of two convolutions; that of the guidance does not depend on the class
    and is computed once for all of them (`project_guidance`).
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, bias=False, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(outputs, max(outputs // 16, 1), dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "n h w c"], added: Float[Array, "n h w o"] | None = None
    ) -> Float[Array, "n h w o"]:
        """`added` is the convolution of the channels that x lacks."""
        if added is None:
            return jax.nn.relu(self.norm(self.conv(x)))
        return jax.nn.relu(self.norm(self._convolve(x, 0) + added))

    def project_guidance(self, guidance: Float[Array, "b h w g"]) -> Float[Array, "b h w o"]:
        """The convolution of the guidance, which comes last of the channels."""
        return self._convolve(guidance, self.conv.in_features - guidance.shape[-1])

    def _convolve(self, x: Array, first: int) -> Array:
        kernel = self.conv.kernel[...][:, :, first : first + x.shape[-1]]
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class DecoderStage(nnx.Module):
    """Doubles the resolution, takes in the guidance, convolves twice."""

    def __init__(self, inputs: int, outputs: int, guidance: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        """`guidance` is the width of the projected guidance; 0 for none."""
        self.upsample = Upsample(inputs, inputs - guidance, 2, dtype=dtype, rngs=rngs)
        self.conv1 = ConvNormRelu(inputs, outputs, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNormRelu(outputs, outputs, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w c"], guidance: Float[Array, "b h2 w2 g"] | None
    ) -> Float[Array, "b t h2 w2 o"]:
        return self.refine(x, None if guidance is None else self.conv1.project_guidance(guidance))

    def refine(
        self, x: Float[Array, "b t h w c"], guided: Float[Array, "b h2 w2 o"] | None
    ) -> Float[Array, "b t h2 w2 o"]:
        """The stage, its guidance already convolved."""
        b, t, h, w, c = x.shape
        up = self.upsample(x.reshape(b * t, h, w, c))
        out = self.conv2(self.conv1(up, None if guided is None else jnp.repeat(guided, t, axis=0)))
        return out.reshape(b, t, *out.shape[1:])


class Decoder(nnx.Module):
    """From the refined grid to four times its resolution, one logit per class and cell."""

    def __init__(self, inputs: int, config: DecoderConfig, *, guided: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.remat = config.remat
        first, second = config.dims
        guidance = config.guidance_dims if guided else (0, 0)
        self.stage1 = DecoderStage(inputs, first, guidance[0], dtype=dtype, rngs=rngs)
        self.stage2 = DecoderStage(first, second, guidance[1], dtype=dtype, rngs=rngs)
        self.head = Conv(second, 1, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], guidance: tuple[Array, Array] | None) -> Float[Array, "b t h4 w4"]:
        """`guidance`: projected maps at twice and four times the grid, each [b, h, w, g]."""
        return self.decode(x, None if guidance is None else self.project_guidance(guidance))

    def project_guidance(self, guidance: tuple[Array, Array]) -> tuple[Array, Array]:
        """What the guidance adds in both stages, whatever the class."""
        middle, fine = guidance
        return self.stage1.conv1.project_guidance(middle), self.stage2.conv1.project_guidance(fine)

    def decode(self, x: Float[Array, "b t h w c"], guided: tuple[Array, Array] | None) -> Float[Array, "b t h4 w4"]:
        """The decoder, its guidance already convolved."""
        middle, fine = guided or (None, None)
        x = over_batch(recomputed(self.stage1.refine, self.remat)(over_batch(x), middle))
        x = over_batch(recomputed(self.stage2.refine, self.remat)(x, fine))
        b, t, h, w, c = x.shape
        return self.head(x.reshape(b * t, h, w, c)).reshape(b, t, h, w).astype(jnp.float32)
