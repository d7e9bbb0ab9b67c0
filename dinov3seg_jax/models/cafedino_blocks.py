"""The blocks that CAFe-DINO refines its class maps with, as coded (rfaulk/DINO_Soars).

They look like CAT-Seg's (`late_refinement`) and differ in what decides: a relative bias, padding that is attended to,
no residual of a block's own input, and attention between heads in place of classes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import CafeDinoConfig
from dinov3seg_jax.models.attention import dot_product_attention
from dinov3seg_jax.models.blocks import Mlp
from dinov3seg_jax.models.layers import LayerNorm, Linear, normal

APART = -100  # added to the scores of cells that the shift brought together, as coded
LINEAR_ATTENTION_EPSILON = 1e-6


class Windows(NamedTuple):
    """How a grid is cut along its two axes."""

    grid: tuple[int, int]
    side: tuple[int, int]
    shift: tuple[int, int]

    @classmethod
    def of(cls, grid: tuple[int, int], side: tuple[int, int], shifted: bool) -> "Windows":
        """Along an axis that one window covers it is as long as the grid, and there is no shift."""
        within = tuple(min(pair) for pair in zip(grid, side, strict=True))
        shift = tuple(most // 2 if shifted and n > most else 0 for n, most in zip(grid, side, strict=True))
        return cls(grid, (within[0], within[1]), (shift[0], shift[1]))

    @property
    def padded(self) -> tuple[int, int]:
        """The grid, filled up to whole windows."""
        rows, columns = (math.ceil(n / side) * side for n, side in zip(self.grid, self.side, strict=True))
        return rows, columns

    def cut(self, x: Float[Array, "b t h w d"]) -> Float[Array, "b t windows n d"]:
        """Rolled back by the shift first, and filled up with zeros only then."""
        b, t, h, w, d = x.shape
        (rows, columns), (high, wide) = self.padded, self.side
        x = jnp.roll(x, (-self.shift[0], -self.shift[1]), (2, 3))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, rows - h), (0, columns - w), (0, 0)))
        x = x.reshape(b, t, rows // high, high, columns // wide, wide, d).swapaxes(3, 4)
        return x.reshape(b, t, -1, high * wide, d)

    def stitch(self, x: Float[Array, "b t windows n d"]) -> Float[Array, "b t h w d"]:
        """What `cut` had cut."""
        b, t, *_, d = x.shape
        (rows, columns), (high, wide) = self.padded, self.side
        x = x.reshape(b, t, rows // high, columns // wide, high, wide, d).swapaxes(3, 4)
        x = x.reshape(b, t, rows, columns, d)[:, :, : self.grid[0], : self.grid[1]]
        return jnp.roll(x, self.shift, (2, 3))

    def mask(self) -> Float[np.ndarray, "windows 1 n n"]:
        """The penalty that keeps regions of the shifted grid apart; its padding is attended to.

        As the code lays it out for the padded grid. There it is built once, for 14 x 14, and so fails or is wrong on
        a grid that is padded to another; here it is that of the grid at hand.
        """
        (rows, columns), (high, wide) = self.padded, self.side
        region = 3 * _regions(rows, high, self.shift[0])[:, None] + _regions(columns, wide, self.shift[1])
        cells = region.reshape(rows // high, high, columns // wide, wide).swapaxes(1, 2).reshape(-1, high * wide)
        return np.where(cells[:, :, None] == cells[:, None, :], 0, APART).astype(np.float32)[:, None]

    def offsets(self, table: tuple[int, int]) -> Int[np.ndarray, "n n"]:
        """Rows of the table of relative biases made for windows of `table` cells."""
        row, column = (part.reshape(-1) for part in np.indices(self.side))
        down = row[:, None] - row + table[0] - 1
        return down * (2 * table[1] - 1) + column[:, None] - column + table[1] - 1


def _regions(length: int, side: int, shift: int) -> Int[np.ndarray, " length"]:
    places = np.arange(length)
    return (places >= length - side).astype(int) + (places >= length - shift) if shift else np.zeros(length, int)


class BiasedWindowAttention(nnx.Module):
    """Attention inside windows; guidance joins queries and keys but not values."""

    def __init__(self, config: CafeDinoConfig, shifted: bool, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config, self.shifted = config, shifted
        dim = config.dim
        cells = (2 * config.window[0] - 1) * (2 * config.window[1] - 1)
        self.bias_table = nnx.Param(normal(0.02)(rngs.params(), (cells, config.heads)))
        self.query = Linear(2 * dim, dim, dtype=dtype, rngs=rngs)
        self.key = Linear(2 * dim, dim, dtype=dtype, rngs=rngs)
        self.value = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w d"], guidance: Float[Array, "b 1 h w d"]) -> Float[Array, "b t h w d"]:
        heads, d = self.config.heads, x.shape[-1]
        windows = Windows.of((x.shape[2], x.shape[3]), self.config.window, self.shifted)
        cells = windows.cut(x)
        guided = jnp.concatenate([cells, jnp.broadcast_to(windows.cut(guidance), cells.shape)], axis=-1)
        query, key, value = (
            part.reshape(*part.shape[:-1], heads, d // heads)
            for part in (self.query(guided), self.key(guided), self.value(cells))
        )
        bias = jnp.moveaxis(self.bias_table[...][windows.offsets(self.config.window)], -1, 0)
        attended = dot_product_attention(query, key, value, bias + windows.mask())
        return windows.stitch(self.out(attended.reshape(*attended.shape[:-2], d)))


class BiasedSwinBlock(nnx.Module):
    """Window attention and MLP on each class's map by itself; what is added to is already normalised."""

    def __init__(self, config: CafeDinoConfig, shifted: bool, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.dim, dtype=dtype, rngs=rngs)
        self.attention = BiasedWindowAttention(config, shifted, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(config.dim, dtype=dtype, rngs=rngs)
        self.ffn = Mlp(config.dim, 4 * config.dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w d"], guidance: Float[Array, "b 1 h w d"]) -> Float[Array, "b t h w d"]:
        x = self.norm1(x)
        x = x + self.attention(x, guidance)
        return x + self.ffn(self.norm2(x))


class SpatialBlock(nnx.Module):
    """Two Swin blocks, windowed then shifted, guided by the backbone's patches."""

    def __init__(self, config: CafeDinoConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.guidance_norm = LayerNorm(config.dim, dtype=dtype, rngs=rngs)
        self.windowed = BiasedSwinBlock(config, False, dtype=dtype, rngs=rngs)
        self.shifted = BiasedSwinBlock(config, True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w d"], appearance: Float[Array, "b h w d"]) -> Float[Array, "b t h w d"]:
        guidance = self.guidance_norm(appearance)[:, None]
        return self.shifted(self.windowed(x, guidance), guidance)


class ClassBlock(nnx.Module):
    """Named after classes: as released it attends between the heads of each class at each position by itself.

    With `linear` it attends between classes, so that all of them have to come together.
    """

    def __init__(self, config: CafeDinoConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        dim = config.dim
        self.guidance_norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.query = Linear(2 * dim, dim, dtype=dtype, rngs=rngs)
        self.key = Linear(2 * dim, dim, dtype=dtype, rngs=rngs)
        self.value = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ffn = Mlp(dim, 4 * dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w d"], text: Float[Array, "b t d"]) -> Float[Array, "b t h w d"]:
        guidance = self.guidance_norm(text)[:, :, None, None]
        guided = jnp.concatenate([x, jnp.broadcast_to(guidance, x.shape)], axis=-1)
        heads = self.config.heads
        query, key, value = (
            part.reshape(*part.shape[:-1], heads, -1) for part in (self.query(guided), self.key(guided), self.value(x))
        )
        attend = _between_classes if self.config.linear else _between_heads
        y = self.norm(x + attend(query, key, value).reshape(x.shape))
        return y + self.ffn(y)


def _between_heads(query: Array, key: Array, value: Array) -> Float[Array, "b t h w n d"]:
    scores = jnp.einsum("...md,...nd->...mn", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1)
    return jnp.einsum("...mn,...nd->...md", weights.astype(value.dtype), value)


def _between_classes(query: Array, key: Array, value: Array) -> Float[Array, "b t h w n d"]:
    """Linear attention with phi = elu + 1."""
    query, key = jax.nn.elu(query) + 1, jax.nn.elu(key) + 1
    products = jnp.einsum("bthwnd,bthwne->bhwnde", key, value, preferred_element_type=jnp.float32)
    numerator = jnp.einsum("bthwnd,bhwnde->bthwne", query, products, preferred_element_type=jnp.float32)
    denominator = jnp.einsum("bthwnd,bhwnd->bthwn", query, key.sum(axis=1), preferred_element_type=jnp.float32)
    return (numerator / (denominator[..., None] + LINEAR_ATTENTION_EPSILON)).astype(value.dtype)


class Layer(nnx.Module):
    """A spatial block, then a class block."""

    def __init__(self, config: CafeDinoConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.spatial = SpatialBlock(config, dtype=dtype, rngs=rngs)
        self.classes = ClassBlock(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w d"], appearance: Float[Array, "b h w d"], text: Float[Array, "b t d"]
    ) -> Float[Array, "b t h w d"]:
        return self.classes(self.spatial(x, appearance), text)
