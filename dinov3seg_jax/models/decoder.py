"""The upsampling decoder (§5): two guided stages on each class's map by itself, then one logit."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import DecoderConfig
from dinov3seg_jax.models.layers import Conv, GroupNorm, Upsample


class ConvNormRelu(nnx.Module):
    """3 x 3 convolution without bias, group norm (16 channels a group), ReLU."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, bias=False, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(outputs, max(outputs // 16, 1), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w o"]:
        return jax.nn.relu(self.norm(self.conv(x)))


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
        b, t, h, w, c = x.shape
        up = self.upsample(x.reshape(b * t, h, w, c))
        if guidance is not None:
            up = jnp.concatenate([up, jnp.repeat(guidance, t, axis=0)], axis=-1)
        out = self.conv2(self.conv1(up))
        return out.reshape(b, t, *out.shape[1:])


class Decoder(nnx.Module):
    """From the refined grid to four times its resolution, one logit per class and cell."""

    def __init__(self, inputs: int, config: DecoderConfig, *, guided: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        first, second = config.dims
        guidance = config.guidance_dims if guided else (0, 0)
        self.stage1 = DecoderStage(inputs, first, guidance[0], dtype=dtype, rngs=rngs)
        self.stage2 = DecoderStage(first, second, guidance[1], dtype=dtype, rngs=rngs)
        self.head = Conv(second, 1, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], guidance: tuple[Array, Array] | None) -> Float[Array, "b t h4 w4"]:
        """`guidance`: projected maps at twice and four times the grid, each [b, h, w, g]."""
        middle, fine = guidance or (None, None)
        x = self.stage2(self.stage1(x, middle), fine)
        b, t, h, w, c = x.shape
        return self.head(x.reshape(b * t, h, w, c)).reshape(b, t, h, w).astype(jnp.float32)
