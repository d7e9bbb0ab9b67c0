"""TIPSv2's vision tower: two class tokens, a grid of learned positions, and patches that are aligned with text."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import VisionConfig
from dinov3seg_jax.models.attention import Attention
from dinov3seg_jax.models.blocks import Mlp, SwiGlu, run_stack, stack, states_after
from dinov3seg_jax.models.dinotxt import VisionFeatures, taps_of
from dinov3seg_jax.models.kernels import Kernel
from dinov3seg_jax.models.layers import LayerNorm, normal
from dinov3seg_jax.models.vit import PatchEmbed

VISION_NORM_EPSILON = 1e-6
CLASS_TOKENS = 2


class TipsTokens(NamedTuple):
    """Tokens, [first class token, second class token, patches], at the end of the tower and on the way."""

    mixed: Float[Array, "b n d"]  # the tower's own
    values: Float[Array, "b n d"]  # of the value path, whose patches are the ones to compare with text
    taps: tuple[Float[Array, "b n d"], Float[Array, "b n d"]]  # raw


class VisionBlock(nnx.Module):
    """Pre-norm block with LayerScale, which can also run without mixing its tokens."""

    def __init__(self, config: VisionConfig, *, kernel: Kernel, dtype: DTypeLike, rngs: nnx.Rngs):
        d, hidden = config.dim, round(config.dim * config.ffn_ratio)
        self.norm1 = LayerNorm(d, epsilon=VISION_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = Attention(d, config.heads, qkv_bias=True, kernel=kernel, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(d, epsilon=VISION_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.ffn = (
            Mlp(d, hidden, dtype=dtype, rngs=rngs)
            if config.ffn == "mlp"
            else SwiGlu(d, hidden, config.ffn_align, dtype=dtype, rngs=rngs)
        )
        self.ls1 = nnx.Param(np.full(d, config.layerscale_init, np.float32))
        self.ls2 = nnx.Param(np.full(d, config.layerscale_init, np.float32))

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

    def __init__(
        self,
        config: VisionConfig,
        *,
        dtype: DTypeLike,
        stream: DTypeLike | None = None,
        remat: bool = False,
        kernel: Kernel = "auto",
        rngs: nnx.Rngs,
    ):
        """`stream` is the type of the residual stream; default `dtype`."""
        self.config, self.stream, self.remat = config, stream or dtype, remat
        d, token = config.dim, normal(0.02)
        self.patch_embed = PatchEmbed(config.patch_size, d, dtype=dtype, rngs=rngs)
        self.cls_first = nnx.Param(token(rngs.params(), (d,)))  # trained on alt-texts of the web
        self.cls_second = nnx.Param(token(rngs.params(), (d,)))  # trained on synthetic captions
        self.cls_position = nnx.Param(token(rngs.params(), (d,)))  # of the first class token; the second has none
        self.positions = nnx.Param(token(rngs.params(), (config.grid, config.grid, d)))
        self.blocks = stack(lambda rngs: VisionBlock(config, kernel=kernel, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.norm = LayerNorm(d, epsilon=VISION_NORM_EPSILON, dtype=dtype, rngs=rngs)

    def embed(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """The tokens before the first block.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        p = self.config.patch_size
        if images.shape[1] % p or images.shape[2] % p:
            raise ValueError(f"the sides {images.shape[1]} x {images.shape[2]} must be multiples of {p}")
        patches = self.patch_embed(images).astype(self.stream)
        b, h, w, d = patches.shape
        patches = patches + resize_positions(self.positions[...], h, w).astype(patches.dtype)
        prefix = jnp.stack([self.cls_first + self.cls_position, self.cls_second[...]]).astype(patches.dtype)
        prefix = jnp.broadcast_to(prefix, (b, CLASS_TOKENS, d))
        return jnp.concatenate([prefix, patches.reshape(b, h * w, d)], axis=1)

    def tokens(self, images: Float[Array, "b height width 3"], *, frozen_blocks: int = 0) -> TipsTokens:
        """All tokens that the tower hands on."""
        x, last, taps = self.embed(images), self.config.depth - 1, taps_of(self.config)
        stops = sorted({*(tap + 1 for tap in taps), last} - {0})
        states = {0: x} | states_after(
            self.blocks, x, lambda block, x: block(x), stops, frozen_blocks=frozen_blocks, remat=self.remat
        )
        of_last: dict[str, Any] = {"start": last, "stop": last + 1, "frozen": frozen_blocks > last, "remat": self.remat}
        mixed = run_stack(self.blocks, states[last], lambda block, x: block(x), **of_last)
        values = run_stack(self.blocks, states[last], lambda block, x: block.value_path(x), **of_last)
        states[last + 1] = mixed
        first, second = (states[tap + 1] for tap in taps)
        return TipsTokens(self.norm(mixed), self.norm(values), (first, second))

    def __call__(self, images: Float[Array, "b height width 3"], *, frozen_blocks: int = 0) -> VisionFeatures:
        """Encode pixels in [0, 1], which are not normalised any further; the sides are multiples of the patch size.

        `patches` are those of the value path, `backbone_patches` the tower's own, `cls` is the first class token.
        """
        tokens = self.tokens(images, frozen_blocks=frozen_blocks)
        h, w = (side // self.config.patch_size for side in images.shape[1:3])

        def grid(x: Float[Array, "b n d"]) -> Float[Array, "b h w d"]:
            return x[:, CLASS_TOKENS:].reshape(len(x), h, w, -1)

        first, second = tokens.taps
        return VisionFeatures(tokens.mixed[:, 0], grid(tokens.values), grid(tokens.mixed), (grid(first), grid(second)))


def resize_positions(grid: Float[Array, "g g d"], height: int, width: int) -> Float[Array, "height width d"]:
    """Bilinear with antialiasing, in float32; as it is at equal size."""
    shape = (height, width, grid.shape[-1])
    return grid if grid.shape == shape else jax.image.resize(grid.astype(jnp.float32), shape, "linear", antialias=True)
