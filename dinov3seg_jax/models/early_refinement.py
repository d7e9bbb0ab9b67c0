"""Early refinement (§2): window cross-attention whose values are the unprojected patch features, after AnyUp."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.config import EarlyRefinementConfig
from dinov3seg_jax.models.blocks import recomputed
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.layers import Conv, GroupNorm, Linear, constant, normal
from dinov3seg_jax.models.mesh import over_batch
from dinov3seg_jax.models.rope import rotate_half

Pool = Callable[
    [Array], Array
]  # [b, h, w, c] to a coarser grid: means of cells, so linear and the same for each channel

CHANNEL_CHUNK = 32  # feature channels filtered at once: bounds memory at 1024 channels


def window_bounds(outputs: int, inputs: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one input cell that each output cell may attend to along one axis.

    Float32 in AnyUp's order of operations: where a bound is mathematically an integer, the rounding decides.
    """
    centres = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) / np.float32(outputs)
    low = np.floor(np.maximum(centres - np.float32(ratio), 0) * np.float32(inputs))
    high = np.ceil(np.minimum(centres + np.float32(ratio), 1) * np.float32(inputs))
    return low.astype(np.int64), high.astype(np.int64)


def window_mask(output_grid: tuple[int, int], input_grid: tuple[int, int], ratio: float) -> np.ndarray:
    """Bool [Ho * Wo, h * w]: which input cells each output cell may attend to; ratio 0 allows all."""
    if ratio == 0:
        return np.ones((output_grid[0] * output_grid[1], input_grid[0] * input_grid[1]), bool)
    axes = []
    for outputs, inputs in zip(output_grid, input_grid, strict=True):
        low, high = window_bounds(outputs, inputs, ratio)
        cells = np.arange(inputs)
        axes.append((cells >= low[:, None]) & (cells < high[:, None]))
    rows, columns = axes
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(len(rows) * len(columns), -1)


def squared_distances(output_grid: tuple[int, int], input_grid: tuple[int, int]) -> np.ndarray:
    """Float32 [Ho * Wo, h * w]: squared distance of the cells' centres, in input cells."""
    axes = []
    for outputs, inputs in zip(output_grid, input_grid, strict=True):
        centres = (np.arange(outputs) + 0.5) * inputs / outputs
        axes.append((centres[:, None] - (np.arange(inputs) + 0.5)) ** 2)
    rows, columns = axes
    return (rows[:, None, :, None] + columns[None, :, None, :]).reshape(len(rows) * len(columns), -1).astype(np.float32)


@functools.lru_cache(maxsize=64)
def pooling_matrix(inputs: int, outputs: int) -> np.ndarray:
    """Float32 [outputs, inputs] of adaptive average pooling along one axis."""
    matrix = np.zeros((outputs, inputs), np.float32)
    for i in range(outputs):
        low, high = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def adaptive_average_pool(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b height width c"]:
    """Mean over the cells that each output cell overlaps."""
    b, h, w, c = x.shape
    if h % height == 0 and w % width == 0:  # means of whole cells, which turn no map for a product
        rows_pooled = x.reshape(b, height, h // height, w, c).mean(2, dtype=jnp.float32)
        return rows_pooled.reshape(b, height, width, w // width, c).mean(3).astype(x.dtype)
    rows, columns = pooling_matrix(x.shape[1], height), pooling_matrix(x.shape[2], width)
    return jnp.einsum("ih,jw,bhwc->bijc", rows.astype(x.dtype), columns.astype(x.dtype), x)


class ResBlock(nnx.Module):
    """x + pointwise(silu(norm(pointwise(silu(norm(x)))))), all pointwise but the group norms.

    Where the width changes, x goes through a dense layer of its own.
    """

    def __init__(self, inputs: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs, min(8, inputs), dtype=dtype, rngs=rngs)
        self.conv1 = Linear(inputs, dim, bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(dim, min(8, dim), dtype=dtype, rngs=rngs)
        self.conv2 = Linear(dim, dim, bias=False, dtype=dtype, rngs=rngs)
        self.widens = inputs != dim
        if self.widens:
            self.shortcut = Linear(inputs, dim, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], pool: Pool = lambda x: x) -> Float[Array, "b h2 w2 d"]:
        """`pool` of the block's output, to rounding: pooling commutes with the last dense layers, which then cost less.

        It commutes because they are linear and work on each cell by itself.
        """
        hidden = jax.nn.silu(self.norm2(self.conv1(jax.nn.silu(self.norm1(x)))))
        x, hidden = pool(x), pool(hidden)
        return self.conv2(hidden) + (self.shortcut(x) if self.widens else x)


class Encoder(nnx.Module):
    """A convolution with reflecting borders, then two residual blocks."""

    def __init__(self, inputs: int, dim: int, kernel: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.pad = kernel // 2
        self.conv = Conv(inputs, dim, kernel, padding="VALID", bias=False, dtype=dtype, rngs=rngs)
        self.block1 = ResBlock(dim, dim, dtype=dtype, rngs=rngs)
        self.block2 = ResBlock(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], pool: Pool = lambda x: x) -> Float[Array, "b h2 w2 d"]:
        """The encoded map, pooled."""
        p = self.pad
        x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), mode="reflect") if p else x
        return self.block2(self.block1(self.conv(x)), pool)


class FeatureUnification(nnx.Module):
    """Turns features of any width into `dim` channels: one bank of filters for every channel, softmax, mean."""

    def __init__(self, dim: int, unification: str, *, kernel: int = 5, dtype: DTypeLike, rngs: nnx.Rngs):
        self.unification = unification
        self.basis = nnx.Param(normal(1.0)(rngs.params(), (kernel, kernel, 1, dim)))
        self.dtype = dtype

    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """`features` are unit vectors. The softmax runs in float32: its outputs differ in the sixth digit."""
        if self.unification == "official":
            return self._official(features)
        b, h, w, c = features.shape
        chunks = -(-c // CHANNEL_CHUNK)
        padded = jnp.pad(features, ((0, 0), (0, 0), (0, 0), (0, chunks * CHANNEL_CHUNK - c)))
        valid = (jnp.arange(chunks * CHANNEL_CHUNK) < c).reshape(chunks, CHANNEL_CHUNK)
        split = jnp.moveaxis(padded.reshape(b, h, w, chunks, CHANNEL_CHUNK), 3, 0)

        @jax.checkpoint
        def accumulate(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
            channels, mask = chunk
            weights = jax.nn.softmax(self._filter(channels), axis=-1)
            return total + jnp.einsum("bhwco,c->bhwo", weights, mask.astype(weights.dtype)), None

        total = jnp.zeros((b, h, w, self.basis.shape[-1]), jnp.float32)
        return (jax.lax.scan(accumulate, total, (split, valid))[0] / c).astype(self.dtype)

    def _official(self, features: Array) -> Array:
        """AnyUp as coded: results laid out (channel, filter) are read as (filter, channel).

        Some columns of that table at a time. In each row they are a run of results, of two neighbouring channels.
        """
        b, h, w, c = features.shape
        filters = self.basis.shape[-1]
        first = np.arange(0, c, filters)[:, None] + np.arange(filters) * c
        channel, offset = np.divmod(first, filters)
        aligned = not offset.any()
        padded = jnp.pad(features, ((0, 0), (0, 0), (0, 0), (0, filters + 1)))
        valid = np.arange(len(first) * filters).reshape(-1, filters) < c

        @jax.checkpoint
        def accumulate(total: Array, columns: tuple[Array, Array, Array]) -> tuple[Array, None]:
            channel, offset, valid = columns
            pair = channel[:, None] + np.arange(1 if aligned else 2)
            results = self._filter(padded[..., pair.reshape(-1)]).reshape(b, h, w, filters, -1)
            if not aligned:
                run = offset[:, None] + np.arange(filters)
                results = jnp.take_along_axis(results, run[None, None, None], axis=-1)
            weights = jax.nn.softmax(results, axis=-2)
            return total + jnp.einsum("bhwoc,c->bhwo", weights, valid.astype(weights.dtype)), None

        total = jnp.zeros((b, h, w, filters), jnp.float32)
        return (jax.lax.scan(accumulate, total, (channel, offset, valid))[0] / c).astype(self.dtype)

    def _filter(self, channels: Array) -> Array:
        """Every channel through every filter, divided by the taps inside the map: [b, h, w, c, filters]."""
        b, h, w, c = channels.shape
        single = jnp.moveaxis(channels, 3, 1).reshape(b * c, h, w, 1).astype(jnp.float32)
        responses = jax.lax.conv_general_dilated(
            single, self.basis[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        reach = self.basis.shape[0] // 2
        taps = [np.minimum(np.arange(n), reach) + np.minimum(np.arange(n)[::-1], reach) + 1 for n in (h, w)]
        responses = responses / np.outer(*taps)[..., None].astype(np.float32)
        return jnp.moveaxis(responses.reshape(b, c, h, w, -1), 1, 3)


def rotary_frequencies(dim: int) -> np.ndarray:
    """Initial [2, dim] of the learned positions: the first half turns with the row, the second with the column."""
    base = np.tile(100.0 ** np.linspace(0, -1, dim // 4), 2)
    frequencies = np.zeros((2, dim), np.float32)
    frequencies[0, : dim // 2] = frequencies[1, dim // 2 :] = 2 * np.pi * base
    return frequencies


class EarlyRefinement(nnx.Module):
    """Every output is a convex combination of nearby patch features, so it stays in the text-aligned space."""

    def __init__(self, config: EarlyRefinementConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        d = config.dim
        filters = config.unification_dim or d
        of_image, of_query, of_key = config.kernels
        self.image_encoder = Encoder(3, d, of_image, dtype=dtype, rngs=rngs)
        self.query_encoder = Encoder(d, d, of_query, dtype=dtype, rngs=rngs)
        self.key_encoder = Encoder(d, d, of_key, dtype=dtype, rngs=rngs)
        self.frequencies = nnx.Param(rotary_frequencies(d))
        self.unify = FeatureUnification(
            filters, config.unification, kernel=config.unification_kernel, dtype=dtype, rngs=rngs
        )
        self.unify_block1 = ResBlock(filters, d, dtype=dtype, rngs=rngs)
        self.unify_block2 = ResBlock(d, d, dtype=dtype, rngs=rngs)
        self.aggregation = Encoder(2 * d, d, 3, dtype=dtype, rngs=rngs)
        self.query_conv = Conv(d, d, 3, bias=False, dtype=dtype, rngs=rngs)
        epsilon = float(np.finfo(np.float32).eps)
        self.query_norm = nnx.RMSNorm(d, epsilon=epsilon, scale_init=constant(1), dtype=dtype, rngs=rngs)
        self.key_norm = nnx.RMSNorm(d, epsilon=epsilon, scale_init=constant(1), dtype=dtype, rngs=rngs)
        self.query = Linear(d, d, dtype=dtype, rngs=rngs)
        self.key = Linear(d, d, dtype=dtype, rngs=rngs)
        self.locality = nnx.Param(np.full((), config.locality, np.float32))

    def __call__(
        self,
        images: Float[Array, "b height width 3"],
        features: Float[Array, "b h w c"],
        output_grid: tuple[int, int] | None = None,
    ) -> Float[Array, "b ho wo c"]:
        """Refine the patch features by the image.

        Args:
            images: normalised pixels.
            features: text-aligned patch features, of any width.
            output_grid: height and width of the output; default that of the features.
        """
        grid = features.shape[1:3]
        output_grid = output_grid or (grid[0], grid[1])
        weights = self.attention_weights(images, features, output_grid)
        b, h, w, c = features.shape
        refined = jnp.einsum("bqk,bkc->bqc", weights.astype(features.dtype), features.reshape(b, h * w, c))
        return refined.reshape(b, *output_grid, c)

    def attention_weights(
        self, images: Float[Array, "b height width 3"], features: Float[Array, "b h w c"], output_grid: tuple[int, int]
    ) -> Float[Array, "b q k"]:
        """The attention averaged over heads, float32; every row sums to 1."""
        h, w = features.shape[1:3]
        encoded = self._recomputed(lambda x: self._add_positions(self.image_encoder(self._reduce(x))))(images)
        queries = self.query_conv(self._pooled(self.query_encoder, output_grid)(encoded))
        from_image = self._pooled(self.key_encoder, (h, w))(encoded)
        from_features = self.unify_block2(self.unify_block1(self.unify(l2_normalize(features))))
        keys = self.aggregation(jnp.concatenate([from_image, from_features], axis=-1))
        query = self._heads(self.query(self.query_norm(queries)))
        key = self._heads(self.key(self.key_norm(keys)))
        logits = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32)
        logits = logits / np.sqrt(query.shape[-1]) - self.locality[...] * squared_distances(output_grid, (h, w))
        mask = window_mask(output_grid, (h, w), self.config.window_ratio)
        return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1).mean(axis=1)

    def _recomputed(self, encode: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return recomputed(encode, self.config.remat)

    def _pooled(self, encoder: Encoder, grid: tuple[int, int]) -> Callable[[Array], Array]:
        return self._recomputed(lambda x: encoder(x, lambda full: adaptive_average_pool(full, *grid)))

    def _reduce(self, images: Array) -> Array:
        stride = self.config.image_stride
        return adaptive_average_pool(images, images.shape[1] // stride, images.shape[2] // stride)

    def _add_positions(self, encoded: Array) -> Array:
        """AnyUp's learned positions; as coded they pair a row angle with a column angle, so this is no rotation."""
        # An angle is the sum of a row's and a column's, so that sines and cosines are needed of rows and columns alone.
        # Each image has frequencies of its own, so that devices add up what it says of these and not of the angles.
        own = over_batch(jnp.tile(self.frequencies[...], (len(encoded), 1, 1)))
        rows, columns = (np.linspace(0, 1, n, dtype=np.float32)[:, None] for n in encoded.shape[1:3])
        row, column = (rows * own[:, :1])[:, :, None], (columns * own[:, 1:])[:, None]
        cosine = jnp.cos(row) * jnp.cos(column) - jnp.sin(row) * jnp.sin(column)
        sine = jnp.sin(row) * jnp.cos(column) + jnp.cos(row) * jnp.sin(column)
        # `rotate_half` as an exact product: a TPU's compiler would write both halves of the maps to memory.
        halves_swapped = rotate_half(jnp.eye(encoded.shape[-1], dtype=encoded.dtype))
        turned = jnp.matmul(encoded, halves_swapped, precision=jax.lax.Precision.HIGHEST)
        return (encoded.astype(jnp.float32) * cosine + turned.astype(jnp.float32) * sine).astype(encoded.dtype)

    def _heads(self, x: Array) -> Array:
        b, h, w, d = x.shape
        return x.reshape(b, h * w, self.config.heads, d // self.config.heads)
