"""The Semantic Prior Encoder's guidance (§4): one map for the spatial blocks, two for the decoder."""

from typing import NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.layers import Conv, Upsample
from dinov3seg_jax.models.scene import PriorMaps


class Guidance(NamedTuple):
    """Projected guidance on the grids of the class maps."""

    appearance: Float[Array, "b h w d"]  # for the spatial blocks
    decoder: tuple[Float[Array, "b h2 w2 g1"], Float[Array, "b h4 w4 g2"]]


class ConvRelu(nnx.Module):
    """3 x 3 convolution and ReLU."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        return jax.nn.relu(self.conv(x))


class GuidanceProjection(nnx.Module):
    """Lifts the intermediate maps to two and four times the grid and projects all three."""

    def __init__(self, config: ModelConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        sam = config.spe == "sam"
        final, inner = (config.sam.neck_dim, config.sam.dim) if sam else (config.vision.shared_dim, config.vision.dim)
        middle, fine = config.spe_dims
        self.lift_middle = Upsample(inner, middle, 2, dtype=dtype, rngs=rngs)
        self.lift_fine = Upsample(inner, fine, 4, dtype=dtype, rngs=rngs)
        self.project_appearance = ConvRelu(final, config.late.appearance_dim or config.late.dim, dtype=dtype, rngs=rngs)
        self.project_middle = ConvRelu(middle, config.decoder.guidance_dims[0], dtype=dtype, rngs=rngs)
        self.project_fine = ConvRelu(fine, config.decoder.guidance_dims[1], dtype=dtype, rngs=rngs)

    def __call__(self, maps: PriorMaps, height: int, width: int) -> Guidance:
        """`height` and `width` are of the grid of the class maps; a prior on another grid is resized to it."""
        appearance = self.project_appearance(resize_linear(maps.final, height, width))
        middle = self.project_middle(resize_linear(self.lift_middle(maps.early), 2 * height, 2 * width))
        fine = self.project_fine(resize_linear(self.lift_fine(maps.middle), 4 * height, 4 * width))
        return Guidance(appearance, (middle, fine))
