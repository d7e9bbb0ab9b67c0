"""TIPSv2's vision tower: two class tokens, a grid of learned positions, and patches that are aligned with text."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.models.attention import Attention
from dinov3seg_jax.models.blocks import Mlp, SwiGlu, run_stack, stack
from dinov3seg_jax.models.layers import LayerNorm, normal
from dinov3seg_jax.models.vit import PatchEmbed

VISION_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class TipsVisionConfig:
    """Sizes of the tower; the defaults are those of L/14."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096  # of the feed-forward layers, as the files hold it
    ffn: Literal["mlp", "swiglu"] = "mlp"
    patch_size: int = 14
    grid: int = 32  # side of the grid that the positions were learned on


class TipsFeatures(NamedTuple):
    """What the tower hands on, after the final norm."""

    cls_first: Float[Array, "b d"]  # trained on alt-texts of the web
    cls_second: Float[Array, "b d"]  # trained on synthetic captions
    patches: Float[Array, "b h w d"]
    values: Float[Array, "b h w d"]  # of the value path: the patches to compare with text


class VisionBlock(nnx.Module):
    """Pre-norm block with LayerScale, which can also run without mixing its tokens."""

    def __init__(self, config: TipsVisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        d, hidden = config.dim, config.hidden
        self.norm1 = LayerNorm(d, epsilon=VISION_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = Attention(d, config.heads, qkv_bias=True, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(d, epsilon=VISION_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.ffn = (
            Mlp(d, hidden, dtype=dtype, rngs=rngs)
            if config.ffn == "mlp"
            else SwiGlu(d, -(-3 * hidden // 2), align=1, dtype=dtype, rngs=rngs)  # which takes two thirds
        )
        self.ls1 = nnx.Param(np.ones(d, np.float32))
        self.ls2 = nnx.Param(np.ones(d, np.float32))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self._add(x, self.attention(self.norm1(x)))

    def value_path(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Every token takes its own value for what attention would mix; residual and feed-forward stay."""
        return self._add(x, self.attention.out(self.attention.value(self.norm1(x))))

    def _add(self, x: Float[Array, "b n d"], attended: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + attended * self.ls1.astype(x.dtype)
        return x + self.ffn(self.norm2(x)) * self.ls2.astype(x.dtype)


class TipsVision(nnx.Module):
    """[first class token, second class token, patches] through pre-norm blocks."""

    def __init__(self, config: TipsVisionConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        d, token = config.dim, normal(0.02)
        self.patch_embed = PatchEmbed(config.patch_size, d, dtype=dtype, rngs=rngs)
        self.cls_first = nnx.Param(token(rngs.params(), (d,)))
        self.cls_second = nnx.Param(token(rngs.params(), (d,)))
        self.cls_position = nnx.Param(token(rngs.params(), (d,)))  # of the first class token; the second has none
        self.positions = nnx.Param(token(rngs.params(), (config.grid, config.grid, d)))
        self.blocks = stack(lambda rngs: VisionBlock(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.norm = LayerNorm(d, epsilon=VISION_NORM_EPSILON, dtype=dtype, rngs=rngs)

    def embed(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """The tokens before the first block.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        p = self.config.patch_size
        if images.shape[1] % p or images.shape[2] % p:
            raise ValueError(f"the sides {images.shape[1]} x {images.shape[2]} must be multiples of {p}")
        patches = self.patch_embed(images)
        b, h, w, d = patches.shape
        patches = patches + resize_positions(self.positions[...], h, w).astype(patches.dtype)
        prefix = jnp.stack([self.cls_first + self.cls_position, self.cls_second[...]]).astype(patches.dtype)
        return jnp.concatenate([jnp.broadcast_to(prefix, (b, 2, d)), patches.reshape(b, h * w, d)], axis=1)

    def __call__(self, images: Float[Array, "b height width 3"]) -> TipsFeatures:
        """Encode pixels in [0, 1], which are not normalised any further; the sides are multiples of the patch size."""
        last = self.config.depth - 1
        x = run_stack(self.blocks, self.embed(images), lambda block, x: block(x), stop=last)
        mixed = run_stack(self.blocks, x, lambda block, x: block(x), start=last, stop=last + 1)
        values = run_stack(self.blocks, x, lambda block, x: block.value_path(x), start=last, stop=last + 1)
        mixed, values = self.norm(mixed), self.norm(values)
        p = self.config.patch_size
        grid = (len(images), images.shape[1] // p, images.shape[2] // p, self.config.dim)
        return TipsFeatures(mixed[:, 0], mixed[:, 1], mixed[:, 2:].reshape(grid), values[:, 2:].reshape(grid))


def resize_positions(grid: Float[Array, "g g d"], height: int, width: int) -> Float[Array, "height width d"]:
    """Bilinear with antialiasing, in float32; as it is at equal size."""
    shape = (height, width, grid.shape[-1])
    return grid if grid.shape == shape else jax.image.resize(grid.astype(jnp.float32), shape, "linear", antialias=True)
