"""Late refinement (§4): (spatial block, class block), applied in succession, after CAT-Seg."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dinov3seg_jax.config import LateRefinementConfig
from dinov3seg_jax.models.attention import LINEAR_ATTENTION_EPSILON, dot_product_attention, penalty
from dinov3seg_jax.models.blocks import Mlp, recomputed
from dinov3seg_jax.models.functions import linear_weights
from dinov3seg_jax.models.layers import LayerNorm, Linear
from dinov3seg_jax.models.mesh import gather_classes, over_batch, runs_apart, sum_classes
from dinov3seg_jax.models.scene import ClassSums, GuidedHalf

FULL_ATTENTION_SCORES = 2**26  # of full class attention at once; more positions run one batch after the other


def shifted_window_mask(height: int, width: int, window: int, shift: int) -> Bool[np.ndarray, "windows n n"] | None:
    """Which pairs of cells of each window may attend to each other, on a grid padded to whole windows.

    Cells that the cyclic shift brought together from opposite borders are kept apart, and so is the padding. None
    where every pair may attend.
    """
    rows, columns = (math.ceil(n / window) * window for n in (height, width))
    if not shift and (rows, columns) == (height, width):
        return None
    region = np.zeros((rows, columns), np.int64)
    if shift:
        for axis, n in enumerate((rows, columns)):
            index = np.arange(n)
            label = (index >= n - window).astype(np.int64) + (index >= n - shift)
            region += label[:, None] * 3 if axis == 0 else label
    padding = np.ones((rows, columns), bool)
    padding[:height, :width] = False
    region[np.roll(padding, (-shift, -shift), (0, 1))] = -1
    windows = region.reshape(rows // window, window, columns // window, window).transpose(0, 2, 1, 3)
    cells = windows.reshape(-1, window * window)
    return cells[:, :, None] == cells[:, None, :]


def cut_windows(x: Float[Array, "b t h w d"], window: int, shift: int) -> Float[Array, "b t windows n d"]:
    """The grid, filled up to whole windows and rolled back by `shift`, as windows of n = window * window cells."""
    b, t, h, w, d = x.shape
    rows, columns = math.ceil(h / window), math.ceil(w / window)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, rows * window - h), (0, columns * window - w), (0, 0)))
    if shift:
        x = jnp.roll(x, (-shift, -shift), (2, 3))
    x = x.reshape(b, t, rows, window, columns, window, d).swapaxes(3, 4)
    return x.reshape(b, t, rows * columns, window * window, d)


def stitch_windows(
    x: Float[Array, "b t windows n d"], height: int, width: int, window: int, shift: int
) -> Float[Array, "b t height width d"]:
    """What `cut_windows` had cut."""
    b, t, *_, d = x.shape
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    x = x.reshape(b, t, rows, columns, window, window, d).swapaxes(3, 4)
    x = x.reshape(b, t, rows * window, columns * window, d)
    if shift:
        x = jnp.roll(x, (shift, shift), (2, 3))
    return x[:, :, :height, :width]


class WindowAttention(nnx.Module):
    """Attention inside windows; guidance joins queries and keys but not values.

    A dense layer on a concatenation is a sum of two dense layers; the guidance half does not depend on the class and
    is computed once for all of them (`project_guidance`).
    """

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, guidance_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.heads, self.window, self.shift = heads, window, shift
        self.query = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.key = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.value = Linear(dim, dim, dtype=dtype, rngs=rngs)
        if guidance_dim:
            self.query_guidance = Linear(guidance_dim, dim, bias=False, dtype=dtype, rngs=rngs)
            self.key_guidance = Linear(guidance_dim, dim, bias=False, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def project_guidance(self, guidance: Float[Array, "b 1 h w g"]) -> GuidedHalf:
        """What the guidance adds to queries and keys."""
        return GuidedHalf(self.query_guidance(guidance), self.key_guidance(guidance))

    def windows_of(self, height: int, width: int) -> tuple[int, int]:
        """Side and shift of the windows on a grid."""
        smaller = min(height, width)
        return min(self.window, smaller), self.shift if smaller > self.window else 0

    def __call__(self, x: Float[Array, "b t h w d"], half: GuidedHalf | None) -> Float[Array, "b t h w d"]:
        *_, h, w, d = x.shape
        window, shift = self.windows_of(h, w)
        query, key, value = self.query(x), self.key(x), self.value(x)
        if half is not None:
            query, key = query + half.query, key + half.key
        mask = shifted_window_mask(h, w, window, shift)
        query, key, value = (
            part.reshape(*part.shape[:-1], self.heads, d // self.heads)
            for part in (cut_windows(part, window, shift) for part in (query, key, value))
        )
        attended = dot_product_attention(query, key, value, None if mask is None else penalty(mask[:, None]))
        return self.out(stitch_windows(attended.reshape(*attended.shape[:-2], d), h, w, window, shift))


class SwinBlock(nnx.Module):
    """Pre-norm window attention and MLP on each class's map by itself."""

    def __init__(
        self, config: LateRefinementConfig, shift: int, guidance_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        dim, heads, window = config.dim, config.heads, config.window
        self.kernel, self.remat = config.kernel, config.remat
        self.norm1 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.attention = WindowAttention(dim, heads, window, shift, guidance_dim, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ffn = Mlp(dim, 4 * dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w d"], guidance: Float[Array, "b 1 h w g"] | None
    ) -> Float[Array, "b t h w d"]:
        return self.refine(x, None if guidance is None else self.attention.project_guidance(guidance))

    def refine(self, x: Float[Array, "b t h w d"], half: GuidedHalf | None) -> Float[Array, "b t h w d"]:
        """The block, its guidance already projected."""
        if self.kernel == "fused":
            from dinov3seg_jax.models.fused_swin import fits  # here, because importing Pallas takes a while

            window, _ = self.attention.windows_of(*x.shape[2:4])
            if fits(window * window, x.shape[-1], x.shape[0]):
                return self._fused(x, half)
        return recomputed(self._step_by_step, self.remat)(x, half)

    def _step_by_step(self, x: Array, half: GuidedHalf | None) -> Array:
        x = x + self.attention(self.norm1(x), half)
        return x + self.ffn(self.norm2(x))

    def _fused(self, x: Array, half: GuidedHalf | None) -> Array:
        from dinov3seg_jax.models import fused_swin

        b, _, h, w, d = x.shape
        window, shift = self.attention.windows_of(h, w)
        nothing = jnp.zeros((b, 1, h, w, d), x.dtype)
        maps = fused_swin.Maps(
            cut_windows(x, window, shift),
            *(cut_windows(part, window, shift)[:, 0] for part in half or (nothing, nothing)),
        )
        bias = fused_swin.score_bias(shifted_window_mask(h, w, window, shift), maps.query.shape[1:3])
        refined = fused_swin.swin_block(_of_kernel(self), maps, bias, self.attention.heads)
        return stitch_windows(refined, h, w, window, shift)


class SpatialRefinementBlock(nnx.Module):
    """Two Swin blocks, windowed then shifted, guided by the Semantic Prior Encoder."""

    def __init__(self, config: LateRefinementConfig, guidance_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        """`guidance_dim` is the width of the projected guidance; 0 for none."""
        self.left_out = config.without == "spatial"
        if guidance_dim:
            self.guidance_norm = LayerNorm(guidance_dim, dtype=dtype, rngs=rngs)
        self.windowed = SwinBlock(config, 0, guidance_dim, dtype=dtype, rngs=rngs)
        self.shifted = SwinBlock(config, config.window // 2, guidance_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w d"], guidance: Float[Array, "b h w g"] | None
    ) -> Float[Array, "b t h w d"]:
        return self.refine(x, None if guidance is None else self.project_guidance(guidance))

    def project_guidance(self, guidance: Float[Array, "b h w g"]) -> tuple[GuidedHalf, GuidedHalf]:
        """What the guidance adds to the queries and keys of both Swin blocks."""
        shared = self.guidance_norm(guidance)[:, None]
        return self.windowed.attention.project_guidance(shared), self.shifted.attention.project_guidance(shared)

    def refine(
        self, x: Float[Array, "b t h w d"], halves: tuple[GuidedHalf, GuidedHalf] | None
    ) -> Float[Array, "b t h w d"]:
        """The block, its guidance already projected."""
        if self.left_out:
            return x
        first, second = halves or (None, None)
        return self.shifted.refine(self.windowed.refine(x, first), second)


class ClassAttention(nnx.Module):
    """Attention over the classes at each position; text guidance joins queries and keys but not values."""

    def __init__(self, dim: int, heads: int, kind: str, guidance_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads, self.kind = heads, kind
        self.query = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.key = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.value = Linear(dim, dim, dtype=dtype, rngs=rngs)
        if guidance_dim:
            self.query_guidance = Linear(guidance_dim, dim, bias=False, dtype=dtype, rngs=rngs)
            self.key_guidance = Linear(guidance_dim, dim, bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w d"],
        guidance: Float[Array, "b t g"] | None,
        among: Float[Array, "b t2 h w d"],
        among_guidance: Float[Array, "b t2 g"] | None,
        among_mask: Bool[Array, "b t2"] | None,
    ) -> Float[Array, "b t h w d"]:
        """Softmax attention of some classes among all; the linear kind goes by way of sums, `sum_up` and `read`."""
        key = self._project(among, among_guidance, self.key, "key_guidance")
        query = self._project(x, guidance, self.query, "query_guidance")
        return self._full(query, key, self._split(self.value(among)), among_mask).reshape(x.shape)

    def sum_up(
        self,
        x: Float[Array, "b t h w d"],
        guidance: Float[Array, "b t g"] | None,
        class_mask: Bool[Array, "b t"] | None,
    ) -> ClassSums:
        """What linear attention has to know of these classes: those of a whole list are the sums of its parts'."""
        key = jax.nn.elu(self._project(x, guidance, self.key, "key_guidance")) + 1
        if class_mask is not None:
            key = key * class_mask[:, :, None, None, None, None].astype(key.dtype)
        value = self._split(self.value(x))
        products = jnp.einsum("bthwnd,bthwne->bhwnde", key, value, preferred_element_type=jnp.float32)
        return ClassSums(products, key.sum(axis=1, dtype=jnp.float32))

    def read(
        self, x: Float[Array, "b t h w d"], guidance: Float[Array, "b t g"] | None, sums: ClassSums
    ) -> Float[Array, "b t h w d"]:
        """Linear attention with phi = elu + 1: every class asks the sums over all of them."""
        query = (jax.nn.elu(self._project(x, guidance, self.query, "query_guidance")) + 1).astype(jnp.float32)
        numerator = jnp.einsum("bthwnd,bhwnde->bthwne", query, sums.products)
        denominator = jnp.einsum("bthwnd,bhwnd->bthwn", query, sums.keys)
        attended = numerator / (denominator[..., None] + LINEAR_ATTENTION_EPSILON)
        return attended.reshape(x.shape).astype(x.dtype)

    def _project(self, x: Array, guidance: Array | None, project: Linear, guided: str) -> Array:
        projected = project(x)
        if guidance is not None:
            projected = projected + getattr(self, guided)(guidance[:, :, None, None])
        return self._split(projected)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _full(self, query: Array, key: Array, value: Array, class_mask: Array | None) -> Array:
        b, t, h, w, n, d = query.shape
        query, key, value = (
            part.transpose(0, 2, 3, 1, 4, 5).reshape(b * h * w, -1, n, d) for part in (query, key, value)
        )
        bias = None if class_mask is None else penalty(jnp.repeat(class_mask, h * w, axis=0)[:, None, None])
        at_once = max(FULL_ATTENTION_SCORES // (n * t * key.shape[1]), 1)
        if at_once >= b * h * w:
            attended = dot_product_attention(query, key, value, bias)
        else:
            at_each = query, key, value, bias
            attended = jax.lax.map(lambda position: dot_product_attention(*position), at_each, batch_size=at_once)
        return attended.reshape(b, h, w, t, n, d).transpose(0, 3, 1, 2, 4, 5)


class ClassMlp(nnx.Module):
    """Two dense layers with a ReLU between them."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up = Linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.down = Linear(4 * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        return self.down(jax.nn.relu(self.up(x)))


class ClassRefinementBlock(nnx.Module):
    """Attention over the classes at each position. Permuting the classes permutes the output, nothing else."""

    def __init__(self, config: LateRefinementConfig, guidance_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        """`guidance_dim` is the width of the projected text."""
        self.config = config
        d = config.dim
        self.norm1 = LayerNorm(d, dtype=dtype, rngs=rngs)
        self.attention = ClassAttention(d, config.heads, config.class_attention, guidance_dim, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(d, dtype=dtype, rngs=rngs)
        self.ffn = ClassMlp(d, dtype=dtype, rngs=rngs)
        if config.pad_classes:
            self.padding = nnx.Param(np.zeros(d, np.float32))
            self.padding_guidance = nnx.Param(np.zeros(guidance_dim, np.float32))

    def __call__(
        self,
        x: Float[Array, "b t h w d"],
        guidance: Float[Array, "b t g"] | None,
        class_mask: Bool[Array, "b t"] | None = None,
        sums: ClassSums | None = None,
    ) -> Float[Array, "b t h w d"]:
        """Refine all classes, or some.

        Args:
            x: their maps.
            guidance: their projected text.
            class_mask: False marks entries that fill the list up to a static length; they are ignored.
            sums: for linear attention, over the whole list where these are not all of it (see `sum_up`).
        """
        if self.config.without == "classes":
            return x
        pooled = average_pool(x, self.config.pooling, self.config.pooling)
        if sums is None and self._has_kernel(pooled):
            y = self._fused(pooled, guidance, class_mask)
            if pooled is x and not self.config.doubled_residual:
                return y
        else:
            y = self.mix(pooled, guidance, class_mask, sums)
        # CAT-Seg adds y, which holds the pooled input already, to the unpooled input.
        update = y if self.config.doubled_residual else y - pooled
        return x + resize_aligned(update, x.shape[2], x.shape[3])

    def sum_up(
        self,
        x: Float[Array, "b t h w d"],
        guidance: Float[Array, "b t g"] | None,
        class_mask: Bool[Array, "b t"] | None = None,
    ) -> ClassSums:
        """What the linear attention of this block has to know of some of the classes."""
        pooled = average_pool(x, self.config.pooling, self.config.pooling)
        return self.attention.sum_up(self.norm1(pooled), guidance, class_mask)

    def mix(
        self,
        x: Float[Array, "b t h w d"],
        guidance: Float[Array, "b t g"] | None,
        class_mask: Bool[Array, "b t"] | None = None,
        sums: ClassSums | None = None,
    ) -> Float[Array, "b t h w d"]:
        """The transformer block over the classes, on the pooled grid.

        Here alone classes meet. Where devices share the list out (see `models.mesh`), sums over it are added up, and
        softmax attention gathers the maps of all classes.
        """
        normed = self.norm1(x)
        if self.attention.kind == "linear":
            if sums is None:
                sums = sum_classes(self.attention.sum_up(normed, guidance, class_mask))
                sums = self.add_padding(sums, self.missing(sum_classes(_present(x, class_mask))))
            attended = self.attention.read(normed, guidance, sums)
        else:
            others = (None if part is None else gather_classes(part) for part in (guidance, class_mask))
            attended = self.attention(normed, guidance, *self._pad(gather_classes(normed), *others))
        y = x + attended
        return y + self.ffn(self.norm2(y))

    def _has_kernel(self, x: Array) -> bool:
        """Whether the kernel does this; it has to have the whole list, all of it real classes."""
        config = self.config
        if config.class_kernel != "fused" or config.class_attention != "linear" or config.pad_classes or runs_apart():
            return False
        from dinov3seg_jax.models.fused_classes import fits  # here, because importing Pallas takes a while

        return fits(x)

    def _fused(self, x: Array, guidance: Array | None, class_mask: Array | None) -> Array:
        from dinov3seg_jax.models import fused_classes

        b, t, h, w, d = x.shape
        query = key = jnp.zeros((b, t, d), x.dtype)
        if guidance is not None:
            query, key = self.attention.query_guidance(guidance), self.attention.key_guidance(guidance)
        maps = fused_classes.Maps(x.reshape(b, t, h * w, d), query, key, fused_classes.presence(class_mask, query))
        return fused_classes.class_block(_of_kernel(self), maps, self.attention.heads).reshape(x.shape)

    def missing(self, present: Int[Array, " b"]) -> Float[Array, " b"]:
        """How many learned entries fill each list, which has so many classes, up to `pad_classes`."""
        return jnp.maximum(self.config.pad_classes - present, 0).astype(jnp.float32)

    def add_padding(self, sums: ClassSums, count: Float[Array, " b"]) -> ClassSums:
        """The sums with so many learned entries more: all of them, at all places, are alike."""
        if not self.config.pad_classes:
            return sums
        entry = self.padding[...].astype(self.attention.key.dtype)[None, None, None, None]
        one = self.attention.sum_up(self.norm1(entry), self.padding_guidance[...][None, None], None)
        products, keys = (
            total + part * count.reshape(-1, *[1] * (part.ndim - 1)) for total, part in zip(sums, one, strict=True)
        )
        return ClassSums(products, keys)

    def _pad(
        self, x: Array, guidance: Array | None, class_mask: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """All classes that softmax attention is among, its keys normed, and the learned entries that fill the list."""
        b, t, h, w, d = x.shape
        longest = self.config.pad_classes - (t if class_mask is None else 0)
        if longest <= 0:
            return x, guidance, class_mask
        filler = jnp.broadcast_to(self.norm1(self.padding[...].astype(x.dtype)), (b, longest, h, w, d))
        if guidance is not None:
            of_text = self.padding_guidance[...].astype(guidance.dtype)
            guidance = jnp.concatenate([guidance, jnp.broadcast_to(of_text, (b, longest, *of_text.shape))], axis=1)
        if class_mask is not None:
            used = jnp.arange(longest) < self.missing(_present(x, class_mask))[:, None]
            class_mask = jnp.concatenate([class_mask, used], axis=1)
        return jnp.concatenate([x, filler], axis=1), guidance, class_mask


def _of_kernel(block: nnx.Module) -> dict[str, Array]:
    """The parameters that a block's kernel takes, by name, vectors as one row; the guidance is projected before it."""
    parameters = {
        "/".join(map(str, path)): value[...].reshape(-1, value.shape[-1])
        for path, value in nnx.to_flat_state(nnx.state(block, nnx.Param))
    }
    return {name: value for name, value in parameters.items() if "guidance" not in name}


def _present(x: Float[Array, "b t h w d"], class_mask: Bool[Array, "b t"] | None) -> Int[Array, " b"]:
    """How many classes are no filling."""
    return jnp.full(x.shape[0], x.shape[1]) if class_mask is None else class_mask.sum(axis=1)


def average_pool(x: Float[Array, "b t h w d"], rows: int, columns: int) -> Float[Array, "b t h2 w2 d"]:
    """Mean over rows x columns cells; what is left over at the far edges is dropped."""
    if rows == columns == 1:
        return x
    b, t, h, w, d = x.shape
    h, w = h // rows, w // columns
    return x[:, :, : h * rows, : w * columns].reshape(b, t, h, rows, w, columns, d).mean((3, 5))


def resize_aligned(x: Float[Array, "b t h w d"], height: int, width: int) -> Float[Array, "b t height width d"]:
    """Bilinear with the corners aligned, as CAT-Seg's class block upsamples; a no-op at equal size."""
    if x.shape[2:4] == (height, width):
        return x
    rows, columns = (_aligned_weights(n, m) for n, m in zip(x.shape[2:4], (height, width), strict=True))
    return jnp.einsum("ih,jw,bthwd->btijd", rows.astype(x.dtype), columns.astype(x.dtype), x)


def _aligned_weights(inputs: int, outputs: int) -> np.ndarray:
    positions = np.linspace(0, inputs - 1, outputs) if outputs > 1 else np.zeros(1)
    return linear_weights(positions, inputs).astype(np.float32)


class LateRefinement(nnx.Module):
    """The pair of blocks, `layers` times, each with weights of its own."""

    def __init__(
        self, config: LateRefinementConfig, appearance_dim: int, text_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """The two widths are of the projected guidance; an `appearance_dim` of 0 means there is none."""
        layers = range(config.layers)
        self.spatial = nnx.List(
            [SpatialRefinementBlock(config, appearance_dim, dtype=dtype, rngs=rngs) for _ in layers]
        )
        self.classes = nnx.List([ClassRefinementBlock(config, text_dim, dtype=dtype, rngs=rngs) for _ in layers])

    def __call__(
        self,
        x: Float[Array, "b t h w d"],
        appearance: Float[Array, "b h w g"] | None,
        text: Float[Array, "b t g2"] | None,
        class_mask: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w d"]:
        """Refine the embedded correlation.

        Args:
            x: embedded correlation maps.
            appearance: projected guidance of the Semantic Prior Encoder, on the same grid.
            text: projected text embeddings.
            class_mask: False for entries that only fill the class list up.
        """
        for spatial, classes in zip(self.spatial, self.classes, strict=True):
            x = over_batch(spatial(over_batch(x), appearance))
            x = recomputed(classes, classes.config.remat)(x, text, class_mask)
        return x
