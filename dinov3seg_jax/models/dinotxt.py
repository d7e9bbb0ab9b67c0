"""dinov3.txt: the vision head and the text tower that share one embedding space (§1; its specification, section 8)."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import TextConfig, VisionConfig
from dinov3seg_jax.models.blocks import Block, run_stack, stack
from dinov3seg_jax.models.kernels import Kernel
from dinov3seg_jax.models.layers import LayerNorm, Linear, normal
from dinov3seg_jax.models.vit import Tokens, VisionTransformer

HEAD_FFN_ALIGN = 64
INITIAL_LOGIT_SCALE = 2.659260  # ln(1 / 0.07)


class VisionHead(nnx.Module):
    """Blocks without positions over the normalised backbone tokens, storage tokens included."""

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
        self.depth = config.head_blocks
        self.stream = stream or dtype
        self.remat = remat
        self.blocks = stack(
            lambda rngs: Block(
                config.dim,
                config.heads,
                ffn="swiglu",
                ffn_align=HEAD_FFN_ALIGN,
                qkv_bias=False,
                layerscale_init=config.layerscale_init,
                kernel=kernel,
                dtype=dtype,
                rngs=rngs,
            ),
            config.head_blocks,
            rngs,
        )
        self.norm = LayerNorm(config.dim, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens) -> Tokens:
        """Map backbone tokens to text-aligned tokens of the same shapes."""
        b, h, w, d = tokens.patches.shape
        prefix = 1 + tokens.storage.shape[1]
        x = jnp.concatenate([tokens.cls[:, None], tokens.storage, tokens.patches.reshape(b, h * w, d)], axis=1)
        x = x.astype(self.stream)
        x = run_stack(self.blocks, x, lambda block, x: block(x), stop=self.depth, remat=self.remat)
        x = self.norm(x)
        return Tokens(x[:, 0], x[:, 1:prefix], x[:, prefix:].reshape(b, h, w, d))


class VisionFeatures(NamedTuple):
    """What the vision tower hands on."""

    cls: Float[Array, "b d"]
    patches: Float[Array, "b h w d"]  # aligned with text
    backbone_patches: Float[Array, "b h w d"]  # after the backbone's final norm, before the head
    intermediate: tuple[Float[Array, "b h w d"], Float[Array, "b h w d"]]  # raw, after the blocks of `taps_of`


def taps_of(config: VisionConfig) -> tuple[int, int]:
    """The blocks, counted from 0, whose raw outputs a vision tower hands on as guidance."""
    if config.taps:
        first, second = config.taps
        return first, second
    return max(config.depth // 3, 1) - 1, max(2 * config.depth // 3, 1) - 1


class VisionTower(nnx.Module):
    """The backbone with dinov3.txt's head on top; without head blocks, the backbone alone."""

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
        """`stream` is the type of the residual streams; default `dtype`."""
        options: Any = {"dtype": dtype, "stream": stream, "remat": remat, "kernel": kernel, "rngs": rngs}
        self.backbone = VisionTransformer(config, **options)
        self.has_head = config.head_blocks > 0
        if self.has_head:
            self.head = VisionHead(config, **options)

    def __call__(self, images: Float[Array, "b height width 3"], *, frozen_blocks: int = 0) -> VisionFeatures:
        """Encode normalised pixels."""
        depth = self.backbone.config.depth
        taps = taps_of(self.backbone.config)
        layers = sorted({*taps, depth - 1})
        raw = dict(
            zip(
                layers,
                self.backbone(images, layers=layers, norm=False, frozen_blocks=frozen_blocks),
                strict=True,
            )
        )
        last = self.backbone.normalize(raw[depth - 1])
        aligned = self.head(last) if self.has_head else last
        return VisionFeatures(aligned.cls, aligned.patches, last.patches, (raw[taps[0]].patches, raw[taps[1]].patches))


class TextTower(nnx.Module):
    """Causal transformer over CLIP tokens; its output has one half for CLS and one half for patches."""

    def __init__(
        self,
        config: TextConfig,
        outputs: int,
        *,
        dtype: DTypeLike,
        stream: DTypeLike | None = None,
        remat: bool = False,
        kernel: Kernel = "auto",
        clip: bool = False,
        rngs: nnx.Rngs,
    ):
        """`outputs` is the width of an embedding, `stream` the type of the residual stream (default `dtype`).

        `clip` puts in CLIP's biases and QuickGELU.
        """
        self.config = config
        self.stream = stream or dtype
        self.remat = remat
        self.token_embedding = nnx.Param(normal(0.02)(rngs.params(), (config.vocab_size, config.dim)))
        self.positional_embedding = nnx.Param(normal(0.01)(rngs.params(), (config.context_length, config.dim)))
        self.blocks = stack(
            lambda rngs: Block(
                config.dim,
                config.heads,
                ffn="quick_gelu" if clip else "mlp",
                ffn_ratio=config.ffn_ratio,
                qkv_bias=clip,
                kernel=kernel,
                dtype=dtype,
                rngs=rngs,
            ),
            config.depth,
            rngs,
        )
        self.norm = LayerNorm(config.dim, dtype=dtype, rngs=rngs)
        self.projection = Linear(config.dim, outputs, bias=False, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(np.full(1, INITIAL_LOGIT_SCALE, np.float32))

    def __call__(self, tokens: Int[Array, "n length"], *, frozen_blocks: int = 0) -> Float[Array, "n outputs"]:
        """Embed rows of token ids, not normalised. The feature is read at the first end-of-text token.

        `length` may be any up to the context length: under the causal mask what follows the end-of-text token does
        not matter, so callers cut the padding off.
        """
        length = tokens.shape[1]
        x = self.token_embedding[...][tokens] + self.positional_embedding[:length]
        x = x.astype(self.stream)
        depth = self.config.depth
        for start, stop in itertools.pairwise(sorted({0, min(frozen_blocks, depth), depth})):
            x = run_stack(
                self.blocks,
                x,
                lambda block, x: block(x, causal=True),
                start=start,
                stop=stop,
                frozen=stop <= frozen_blocks,
                remat=self.remat,
            )
        end = jnp.argmax(tokens, axis=-1)  # end-of-text is the largest id; argmax takes the first
        pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.projection(self.norm(pooled))
