"""CLIP's towers, and the dense features that CAT-Seg reads off its vision tower (CAT-Seg's specification, 2 to 4)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import ModelConfig, VisionConfig
from dinov3seg_jax.models.blocks import Block, run_stack, stack, states_after
from dinov3seg_jax.models.dinotxt import TextTower, VisionFeatures, taps_of
from dinov3seg_jax.models.functions import resize_cubic
from dinov3seg_jax.models.kernels import Kernel
from dinov3seg_jax.models.layers import LayerNorm, Linear, normal
from dinov3seg_jax.models.vit import PatchEmbed


class ClipBlock(Block):
    """A block of CLIP, which can also run as CAT-Seg has the last one: without attention."""

    def dense(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Every token keeps its own value; what it is added to is the class token, not the token itself."""
        x = x[:, :1] + self.attention.out(self.attention.value(self.norm1(x)))
        return x + self.ffn(self.norm2(x))


class ClipVision(nnx.Module):
    """[class token, patches] with learned positions through pre-norm blocks."""

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
        self.patch_embed = PatchEmbed(config.patch_size, d, bias=False, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(token(rngs.params(), (d,)))
        self.cls_position = nnx.Param(token(rngs.params(), (d,)))
        self.positions = nnx.Param(token(rngs.params(), (config.grid, config.grid, d)))
        self.norm_before = LayerNorm(d, dtype=self.stream, rngs=rngs)
        options: Any = {"ffn": "quick_gelu", "kernel": kernel, "dtype": dtype}
        self.blocks = stack(lambda rngs: ClipBlock(d, config.heads, rngs=rngs, **options), config.depth, rngs)
        self.norm = LayerNorm(d, dtype=dtype, rngs=rngs)
        self.projection = Linear(d, config.shared_dim, bias=False, dtype=dtype, rngs=rngs)

    def embed(self, images: Float[Array, "b height width 3"]) -> tuple[Float[Array, "b n d"], int, int]:
        """The tokens before the first block, and the grid's height and width."""
        patches = self.patch_embed(images).astype(self.stream)
        b, h, w, d = patches.shape
        patches = patches + resize_cubic(self.positions[...][None], h, w).astype(patches.dtype)
        first = (self.cls_token + self.cls_position).astype(patches.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (b, 1, d)), patches.reshape(b, h * w, d)], axis=1)
        return self.norm_before(tokens), h, w

    def __call__(self, images: Float[Array, "b height width 3"], *, frozen_blocks: int = 0) -> VisionFeatures:
        """Encode normalised pixels. `patches` are CAT-Seg's, `cls` and `backbone_patches` CLIP's own last block."""
        x, h, w = self.embed(images)
        last = self.config.depth - 1
        taps = taps_of(self.config)
        stops = sorted({*(tap + 1 for tap in taps), last} - {0})
        raw = {0: x} | states_after(
            self.blocks, x, lambda block, x: block(x), stops, frozen_blocks=frozen_blocks, remat=self.remat
        )
        of_last: dict[str, Any] = {"start": last, "stop": last + 1, "frozen": frozen_blocks > last, "remat": self.remat}
        dense = run_stack(self.blocks, raw[last], lambda block, x: block.dense(x), **of_last)
        mixed = run_stack(self.blocks, raw[last], lambda block, x: block(x), **of_last)
        raw[last + 1] = mixed

        def grid(tokens: Float[Array, "b n d"]) -> Float[Array, "b h w d"]:
            return tokens[:, 1:].reshape(len(tokens), h, w, -1)

        aligned, ordinary = (self.projection(self.norm(tokens)) for tokens in (dense, mixed))
        first, second = (grid(raw[tap + 1]) for tap in taps)
        return VisionFeatures(ordinary[:, 0], grid(aligned), grid(ordinary), (first, second))


def vision_tower(config: ModelConfig, **options: Any) -> ClipVision:
    """The vision tower of a model."""
    return ClipVision(config.vision, **options)


def text_tower(config: ModelConfig, **options: Any) -> TextTower:
    """The text tower: as dinov3.txt's, with biases and QuickGELU."""
    return TextTower(config.text, config.vision.shared_dim, clip=True, **options)
