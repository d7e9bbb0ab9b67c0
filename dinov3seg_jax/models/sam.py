"""SAM's image encoder (§4), at any input size."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import SamConfig
from dinov3seg_jax.models.attention import dot_product_attention
from dinov3seg_jax.models.blocks import Mlp, run_stack, stack
from dinov3seg_jax.models.functions import half_pixel_weights
from dinov3seg_jax.models.layers import Conv, LayerNorm, Linear, normal
from dinov3seg_jax.models.vit import PatchEmbed

SAM_NORM_EPSILON = 1e-6


def relative_positions(table: Float[Array, "entries d"], queries: int, keys: int) -> Float[Array, "queries keys d"]:
    """Rows of a relative-position table for every (query, key) pair along one axis.

    A table of another length than 2 * max(queries, keys) - 1 is resized linearly.
    """
    needed = 2 * max(queries, keys) - 1
    if table.shape[0] != needed:
        weights = half_pixel_weights(table.shape[0], needed).astype(table.dtype)
        table = jnp.matmul(weights, table, precision=jax.lax.Precision.HIGHEST)
    query_scale, key_scale = max(keys / queries, 1.0), max(queries / keys, 1.0)
    index = np.arange(queries)[:, None] * query_scale - np.arange(keys)[None] * key_scale + (keys - 1) * key_scale
    return table[index.astype(np.int64)]


class SamAttention(nnx.Module):
    """Attention over a grid, with decomposed relative positions taken from the unscaled query."""

    def __init__(self, dim: int, heads: int, grid: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        """`grid` is the side the position tables are made for."""
        self.heads = heads
        self.query = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.key = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.value = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.rel_pos_h = nnx.Param(np.zeros((2 * grid - 1, dim // heads), np.float32))
        self.rel_pos_w = nnx.Param(np.zeros((2 * grid - 1, dim // heads), np.float32))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        b, h, w, d = x.shape
        shape = (b, h * w, self.heads, d // self.heads)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        grid = query.reshape(b, h, w, *shape[2:])
        rows = relative_positions(self.rel_pos_h[...], h, h).astype(x.dtype)
        columns = relative_positions(self.rel_pos_w[...], w, w).astype(x.dtype)
        bias_h = jnp.einsum("bijnd,ikd->bnijk", grid, rows)
        bias_w = jnp.einsum("bijnd,jkd->bnijk", grid, columns)
        bias = (bias_h[..., :, None] + bias_w[..., None, :]).reshape(b, self.heads, h * w, h * w)
        return self.out(dot_product_attention(query, key, value, bias).reshape(x.shape))


class SamBlock(nnx.Module):
    """Pre-norm block over a grid; window 0 attends globally."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, window: int, grid: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.window = window
        self.norm1 = LayerNorm(dim, epsilon=SAM_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = SamAttention(dim, heads, window or grid, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, epsilon=SAM_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.ffn = Mlp(dim, int(dim * mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        normed = self.norm1(x)
        x = x + (self._attend_windows(normed) if self.window else self.attention(normed))
        return x + self.ffn(self.norm2(x))

    def _attend_windows(self, x: Array) -> Array:
        """Zero padding takes part in attention, unmasked, as SAM was trained."""
        b, h, w, d = x.shape
        s = self.window
        rows, columns = math.ceil(h / s), math.ceil(w / s)
        x = jnp.pad(x, ((0, 0), (0, rows * s - h), (0, columns * s - w), (0, 0)))
        windows = x.reshape(b, rows, s, columns, s, d).transpose(0, 1, 3, 2, 4, 5).reshape(-1, s, s, d)
        windows = self.attention(windows).reshape(b, rows, columns, s, s, d)
        return windows.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * s, columns * s, d)[:, :h, :w]


class SamEncoder(nnx.Module):
    """Windowed ViT with a few global blocks, absolute and relative positions, and a convolutional neck."""

    def __init__(
        self,
        config: SamConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        stream: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """`stream` is the type of the residual stream; default `dtype`."""
        self.config = config
        self.stream = stream or dtype
        self.remat = remat
        d, grid = config.dim, config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, d, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(normal(0.02)(rngs.params(), (grid, grid, d)))

        def block(window: int) -> Callable[[nnx.Rngs], SamBlock]:
            return lambda rngs: SamBlock(d, config.heads, config.mlp_ratio, window, grid, dtype=dtype, rngs=rngs)

        if config.depth > len(config.global_blocks):
            self.window_blocks = stack(block(config.window), config.depth - len(config.global_blocks), rngs)
        if config.global_blocks:
            self.global_blocks = stack(block(0), len(config.global_blocks), rngs)
        self.neck_conv1 = Linear(d, config.neck_dim, bias=False, dtype=dtype, rngs=rngs)
        self.neck_norm1 = LayerNorm(config.neck_dim, epsilon=SAM_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.neck_conv2 = Conv(config.neck_dim, config.neck_dim, 3, bias=False, dtype=dtype, rngs=rngs)
        self.neck_norm2 = LayerNorm(config.neck_dim, epsilon=SAM_NORM_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b height width 3"], *, frozen_blocks: int = 0
    ) -> tuple[Float[Array, "b h w neck"], Float[Array, "b h w d"], Float[Array, "b h w d"]]:
        """Return the neck's output and the maps after one and two thirds of the depth, for normalised pixels.

        The first `frozen_blocks` get no gradient.
        """
        depth, global_blocks = self.config.depth, self.config.global_blocks
        thirds = (max(depth // 3, 1), max(2 * depth // 3, 1))
        x = self.patch_embed(images).astype(self.stream)
        x = x + self._positions(x.shape[1], x.shape[2]).astype(x.dtype)
        maps = {}
        cuts = sorted({0, depth, *thirds, *global_blocks, *(i + 1 for i in global_blocks)})
        for start, stop in itertools.pairwise(cuts):
            globals_before = sum(i < start for i in global_blocks)
            is_global = start in global_blocks
            offset = globals_before if is_global else start - globals_before
            x = run_stack(
                self.global_blocks if is_global else self.window_blocks,
                x,
                lambda block, x: block(x),
                start=offset,
                stop=offset + stop - start,
                frozen=stop <= frozen_blocks,
                remat=self.remat,
            )
            maps[stop] = x
        neck = self.neck_norm2(self.neck_conv2(self.neck_norm1(self.neck_conv1(x))))
        return neck, maps[thirds[0]], maps[thirds[1]]

    def _positions(self, h: int, w: int) -> Array:
        """The absolute table, resized where the input is not the size it was made for [ours]."""
        table = self.pos_embed[...]
        if table.shape[:2] == (h, w):
            return table
        return jax.image.resize(table, (h, w, table.shape[2]), "cubic", antialias=False)
