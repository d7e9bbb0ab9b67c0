"""TIPSv2's text tower: sinusoid positions, attention to every token that is no padding, and their mean."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dinov3seg_jax.config import TextConfig
from dinov3seg_jax.models.attention import Attention, dot_product_attention, penalty
from dinov3seg_jax.models.blocks import Mlp, run_stack, stack
from dinov3seg_jax.models.kernels import Kernel
from dinov3seg_jax.models.layers import LayerNorm, normal

POOLING_EPSILON = 1e-8
PADDING_ID = 0


class ReluMlp(Mlp):
    """Two dense layers with ReLU between them."""

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        return self.down(jax.nn.relu(self.up(x)))


class TextBlock(nnx.Module):
    """Pre-norm block whose tokens see all tokens that are no padding."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.dim, dtype=dtype, rngs=rngs)
        self.attention = Attention(config.dim, config.heads, qkv_bias=True, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(config.dim, dtype=dtype, rngs=rngs)
        self.ffn = ReluMlp(config.dim, round(config.dim * config.ffn_ratio), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n length d"], bias: Float[Array, "n 1 1 length"]) -> Float[Array, "n length d"]:
        attended = dot_product_attention(*self.attention.project(self.norm1(x)), bias)
        x = x + self.attention.out(attended.reshape(x.shape))
        return x + self.ffn(self.norm2(x))


class TipsText(nnx.Module):
    """Rows of token ids to embeddings in the space of the vision tower."""

    def __init__(
        self,
        config: TextConfig,
        *,
        dtype: DTypeLike,
        stream: DTypeLike | None = None,
        remat: bool = False,
        kernel: Kernel = "auto",
        rngs: nnx.Rngs,
    ):
        """`stream` is the type of the residual stream; default `dtype`.

        `kernel` is that of other towers: none of them leaves padding out, and 64 tokens are few.
        """
        self.config, self.stream, self.remat = config, stream or dtype, remat
        self.token_embedding = nnx.Param(normal(0.02)(rngs.params(), (config.vocab_size, config.dim)))
        self.blocks = stack(lambda rngs: TextBlock(config, dtype=dtype, rngs=rngs), config.depth, rngs)
        self.norm = LayerNorm(config.dim, dtype=dtype, rngs=rngs)

    def embed(self, tokens: Int[Array, "n length"]) -> Float[Array, "n length d"]:
        """The tokens before the first block."""
        scaled = self.token_embedding[...][tokens] * math.sqrt(self.config.dim)
        return (scaled + sinusoids(tokens.shape[1], self.config.dim)).astype(self.stream)

    def __call__(self, tokens: Int[Array, "n length"], *, frozen_blocks: int = 0) -> Float[Array, "n d"]:
        """Embed rows of ids of any length, not normalised. A row ends where its zeros begin; one of zeros gives zeros.

        How far a row is filled up does not matter, so callers cut the padding off.
        """
        padding = tokens == PADDING_ID
        bias, x, depth = key_bias(padding), self.embed(tokens), self.config.depth
        for start, stop in itertools.pairwise(sorted({0, min(frozen_blocks, depth), depth})):
            x = run_stack(
                self.blocks,
                x,
                lambda block, x: block(x, bias),
                start=start,
                stop=stop,
                frozen=stop <= frozen_blocks,
                remat=self.remat,
            )
        return mean_of_tokens(self.norm(x), padding)


def key_bias(padding: Bool[Array, "n length"]) -> Float[Array, "n 1 1 length"]:
    """What keeps every token from looking at padding."""
    return jnp.asarray(penalty(~padding))[:, None, None, :]


def sinusoids(length: int, dim: int) -> Float[np.ndarray, "length dim"]:
    """Positions from 0: sines of all frequencies, from 1 down to 1/10000, and then their cosines."""
    frequencies = np.exp(-np.arange(dim // 2) * math.log(10000) / (dim // 2 - 1))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def mean_of_tokens(x: Float[Array, "n length d"], padding: Bool[Array, "n length"]) -> Float[Array, "n d"]:
    """The mean over what is no padding, in float32."""
    kept = (~padding).astype(jnp.float32)[..., None]
    return (x.astype(jnp.float32) * kept).sum(axis=1) / (kept.sum(axis=1) + POOLING_EPSILON)
