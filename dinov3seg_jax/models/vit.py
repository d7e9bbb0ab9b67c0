"""The DINOv3 vision transformer (§1; its specification, sections 3 to 5)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import VisionConfig
from dinov3seg_jax.models.blocks import Block, stack, states_after
from dinov3seg_jax.models.kernels import Kernel
from dinov3seg_jax.models.layers import LayerNorm, Linear, normal
from dinov3seg_jax.models.rope import patch_centres, rope_periods, rope_tables, rotate_patches


class Constant(nnx.Variable):
    """An array that belongs to the checkpoint and never trains."""


class Tokens(NamedTuple):
    """What one layer holds, taken apart."""

    cls: Float[Array, "b d"]
    storage: Float[Array, "b r d"]
    patches: Float[Array, "b h w d"]


class PatchEmbed(nnx.Module):
    """Non-overlapping patches, flattened in (row, column, channel) order, through one dense layer."""

    def __init__(self, patch_size: int, dim: int, *, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs):
        self.patch_size = patch_size
        self.projection = Linear(3 * patch_size**2, dim, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b height width 3"]) -> Float[Array, "b h w d"]:
        """Rows and columns beyond the last whole patch are dropped, as the official model does."""
        p = self.patch_size
        b, h, w = images.shape[0], images.shape[1] // p, images.shape[2] // p
        patches = images[:, : h * p, : w * p].reshape(b, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5)
        return self.projection(patches.reshape(b, h, w, p * p * 3))


class VisionTransformer(nnx.Module):
    """DINOv3 ViT: [CLS, storage tokens, patches] through pre-norm blocks with rotary positions on the patches."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        stream: DTypeLike | None = None,
        remat: bool = False,
        kernel: Kernel = "auto",
        rngs: nnx.Rngs,
    ):
        """`stream` is the type of the residual stream; default `dtype`."""
        self.config = config
        self.stream = stream or dtype
        self.remat = remat
        d = config.dim
        token_init = normal(0.02)
        self.patch_embed = PatchEmbed(config.patch_size, d, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(token_init(rngs.params(), (d,)))
        self.storage_tokens = nnx.Param(token_init(rngs.params(), (config.storage_tokens, d)))
        self.mask_token = Constant(np.zeros(d, np.float32))
        self.periods = Constant(rope_periods(d // config.heads, config.rope_base))
        self.blocks = stack(
            lambda rngs: Block(
                d,
                config.heads,
                ffn=config.ffn,
                ffn_ratio=config.ffn_ratio,
                ffn_align=config.ffn_align,
                qkv_bias=config.qkv_bias,
                layerscale_init=config.layerscale_init,
                kernel=kernel,
                dtype=dtype,
                rngs=rngs,
            ),
            config.depth,
            rngs,
        )
        self.norm = LayerNorm(d, dtype=dtype, rngs=rngs)
        if config.untie_cls_and_patch_norms:
            self.cls_norm = LayerNorm(d, dtype=dtype, rngs=rngs)

    def embed(
        self, images: Float[Array, "b height width 3"], masks: Array | None = None
    ) -> tuple[Float[Array, "b n d"], int, int]:
        """Return the tokens before the first block, and the grid's height and width; `masks` [b, h, w] is bool."""
        patches = self.patch_embed(images).astype(self.stream)
        b, h, w, d = patches.shape
        if masks is not None:
            patches = jnp.where(masks[..., None], self.mask_token.astype(patches.dtype), patches)
        prefix = jnp.concatenate([self.cls_token[None], self.storage_tokens[...]]).astype(patches.dtype)
        prefix = jnp.broadcast_to(prefix, (b, *prefix.shape))
        return jnp.concatenate([prefix, patches.reshape(b, h * w, d)], axis=1), h, w

    def __call__(
        self,
        images: Float[Array, "b height width 3"],
        *,
        layers: Sequence[int] = (),
        norm: bool = True,
        frozen_blocks: int = 0,
        masks: Array | None = None,
    ) -> list[Tokens]:
        """Tokens after each block in `layers` (0-based, increasing; default the last).

        Args:
            images: normalised pixels.
            layers: as in the official `get_intermediate_layers`.
            norm: apply the final norm to every layer returned.
            frozen_blocks: the first blocks, which get no gradient.
            masks: bool [b, h, w]; masked patches are replaced by the mask token.

        Raises:
            ValueError: `layers` is not increasing or out of range.
        """
        depth = self.config.depth
        layers = list(layers) or [depth - 1]
        if sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] >= depth:
            raise ValueError(f"layers must be increasing numbers below {depth}, not {layers}")
        x, h, w = self.embed(images, masks)
        sin, cos = rope_tables(self.periods[...], patch_centres(h, w, self.config.rope_normalize))
        stops = [layer + 1 for layer in layers]
        outputs = states_after(
            self.blocks,
            x,
            lambda block, x: block(x, rotate=lambda t: rotate_patches(t, sin, cos)),
            stops,
            frozen_blocks=frozen_blocks,
            remat=self.remat,
        )
        prefix = 1 + self.config.storage_tokens
        tokens = [
            Tokens(x[:, 0], x[:, 1:prefix], x[:, prefix:].reshape(x.shape[0], h, w, -1))
            for x in (outputs[stop] for stop in stops)
        ]
        return [self.normalize(layer) for layer in tokens] if norm else tokens

    def normalize(self, tokens: Tokens) -> Tokens:
        """Apply the final norm (two norms where CLS and patches have their own)."""
        cls_norm = self.cls_norm if self.config.untie_cls_and_patch_norms else self.norm
        return Tokens(cls_norm(tokens.cls), cls_norm(tokens.storage), self.norm(tokens.patches))
