"""The upsampling decoder (§5): two guided stages on each class's map by itself, then one logit."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import DecoderConfig
from dinov3seg_jax.models.blocks import recomputed
from dinov3seg_jax.models.functions import convolve
from dinov3seg_jax.models.layers import Conv, GroupNorm, Upsample
from dinov3seg_jax.models.mesh import over_batch
from dinov3seg_jax.models.packing import (
    convolve_packed,
    corner_places,
    norm_relu,
    pack,
    surround,
    unpack,
)


class ConvNormRelu(nnx.Module):
    """3 x 3 convolution without bias, group norm (16 channels a group), ReLU.

    A convolution of a concatenation is a sum of two convolutions; that of the guidance does not depend on the class
    and is computed once for all of them (`project_guidance`).
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, bias=False, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(outputs, max(outputs // 16, 1), dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w o"]:
        return self.finish(self.conv(x))

    def finish(self, convolved: Float[Array, "n h w o"]) -> Float[Array, "n h w o"]:
        """All that follows the convolution."""
        return jax.nn.relu(self.norm(convolved))

    def project_guidance(self, guidance: Float[Array, "b h w g"]) -> Float[Array, "b h w o"]:
        """The convolution of the guidance, which comes last of the channels."""
        return convolve(guidance, self.conv.kernel[...][:, :, -guidance.shape[-1] :], "SAME", self.dtype)


class DecoderStage(nnx.Module):
    """Doubles the resolution, takes in the guidance, convolves twice.

    Nothing but a bias lies between the transposed convolution that doubles and the first convolution, so they are run
    as one: half the arithmetic, and no map at the doubled resolution between them.
    """

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
        same = self._alike(b, h, w, guided)
        doubled = unpack(self._corners(x.reshape(b * t, h, w, c)))[:, 1:-1, 1:-1]
        out = self.conv2(self.conv1.finish(doubled + jnp.repeat(same, t, axis=0)))
        return out.reshape(b, t, *out.shape[1:])

    def refine_packed(
        self, x: Float[Array, "b t h w c"], guided: Float[Array, "b h2 w2 o"] | None
    ) -> Float[Array, "b t h w o4"]:
        """The stage, with the four finer cells of each cell packed (see `models.packing`)."""
        b, t, h, w, c = x.shape
        same = pack(surround(self._alike(b, h, w, guided)))
        corners = self._corners(x.reshape(b * t, h, w, c)) + jnp.repeat(same, t, axis=0)
        hidden = norm_relu(self.conv1.norm, corners, rim=True)
        out = convolve_packed(hidden, self.conv2.conv.kernel[...], self.conv2.dtype)
        return norm_relu(self.conv2.norm, out, rim=False).reshape(b, t, h, w, -1)

    def _alike(self, b: int, h: int, w: int, guided: Array | None) -> Float[Array, "b h2 w2 o"]:
        """What the first convolution gets for all classes alike: of the upsampling's bias, and of the guidance."""
        same = self._convolved_bias(2 * h, 2 * w)
        return jnp.broadcast_to(same, (b, *same.shape[1:])) if guided is None else same + guided

    def _corners(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h+1 w+1 o4"]:
        """Upsampled and convolved: each corner between four cells yields the 2 x 2 finer ones around it, packed.

        The outermost lie beyond the grid.
        """
        c = x.shape[-1]
        kernel = self.upsample.kernel[...].reshape(c, 2, 2, -1)
        weights = self.conv1.conv.kernel[...][:, :, : kernel.shape[-1]]
        places = corner_places()
        composed = jnp.einsum(
            "palr,qbks,crsm,abmo->lkcpqo", places, places, kernel, weights, precision=jax.lax.Precision.HIGHEST
        )
        return convolve(surround(x), composed.reshape(2, 2, c, -1), "VALID", self.conv1.dtype)

    def _convolved_bias(self, height: int, width: int) -> Float[Array, "1 height width o"]:
        """What the upsampling's bias becomes: another value at the borders, beyond which there is nothing."""
        bias = self.upsample.bias[...]
        weights = self.conv1.conv.kernel[...][:, :, : len(bias)]
        taps = jnp.einsum("abmo,m->abo", weights, bias, precision=jax.lax.Precision.HIGHEST)
        convolved = jnp.einsum(
            "ya,xb,abo->yxo", taps_inside(height), taps_inside(width), taps, precision=jax.lax.Precision.HIGHEST
        )
        return convolved[None].astype(self.conv1.dtype)


def taps_inside(length: int) -> Float[np.ndarray, "length 3"]:
    """1 where a tap of a convolution of 3 falls inside an axis."""
    places = np.arange(length)[:, None] + np.arange(-1, 2)
    return ((places >= 0) & (places < length)).astype(np.float32)


class Decoder(nnx.Module):
    """From the refined grid to four times its resolution, one logit per class and cell."""

    def __init__(self, inputs: int, config: DecoderConfig, *, guided: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.remat, self.packed, self.dtype = config.remat, config.packed, dtype
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
        if self.packed:
            return self._decode_packed(x, middle, fine)
        x = over_batch(recomputed(self.stage1.refine, self.remat)(over_batch(x), middle))
        x = over_batch(recomputed(self.stage2.refine, self.remat)(x, fine))
        b, t, h, w, c = x.shape
        return self.head(x.reshape(b * t, h, w, c)).reshape(b, t, h, w).astype(jnp.float32)

    def _decode_packed(self, x: Array, middle: Array | None, fine: Array | None) -> Float[Array, "b t h4 w4"]:
        b, t = x.shape[:2]
        x = unpack(over_batch(recomputed(self.stage1.refine_packed, self.remat)(over_batch(x), middle)))
        x = over_batch(recomputed(self.stage2.refine_packed, self.remat)(over_batch(x), fine))
        packed = surround(x.reshape(b * t, *x.shape[2:]))
        logits = unpack(convolve_packed(packed, self.head.kernel[...], self.dtype))[:, 1:-1, 1:-1, 0]
        bias = self.head.bias
        assert bias is not None
        return (logits + bias[...].astype(logits.dtype)).reshape(b, t, *logits.shape[1:]).astype(jnp.float32)
