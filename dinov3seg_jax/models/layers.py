"""Transformer parts shared by the vision, text and SAM towers."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.functions import gelu
from dinov3seg_jax.models.kernels import Kernel, has_kernel
from dinov3seg_jax.models.quantized import widen

Rotation = Callable[[Float[Array, "b n heads d"]], Float[Array, "b n heads d"]]
Initializer = Callable[..., Any]  # (key, shape, dtype) -> array

DATA = "data"  # the axis of a mesh over which examples are shared out
LONG = 256  # tokens
SCORES_OF_AN_IMAGE = 2**22  # of all heads, at most; where there are more, the heads go one by one
NORM_EPSILON = 1e-5  # DINOv3, dinov3.txt and CAT-Seg; SAM uses 1e-6. Flax's own default is 1e-6.


def normal(deviation: float) -> Initializer:
    """Normal initialiser that draws on the host when it can.

    Outside a trace it uses NumPy: compiling JAX's generator for every shape of a model takes a minute on a CPU.
    """

    def init(
        key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: object = None
    ) -> Array | np.ndarray:
        if isinstance(key, jax.core.Tracer):
            return deviation * jax.random.normal(key, shape, dtype)
        generator = np.random.Generator(np.random.Philox(key=np.asarray(jax.random.key_data(key), np.uint64)))
        return (deviation * generator.standard_normal(shape, np.float32)).astype(dtype)

    return init


def constant(value: float) -> Initializer:
    """Constant initialiser, on the host."""
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: np.full(shape, value, dtype)


def fan_in_normal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: object = None
) -> Array:
    """Normal with deviation 1/sqrt(fan-in), so that models of any width train from nothing."""
    return normal(math.prod(shape[:-1]) ** -0.5)(key, shape, dtype)


class Linear(nnx.Linear):
    """A dense layer."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            inputs, outputs, use_bias=bias, kernel_init=fan_in_normal, bias_init=constant(0), dtype=dtype, rngs=rngs
        )


class Conv(nnx.Conv):
    """A square convolution, zero-padded to keep the size unless told otherwise."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        bias: bool = True,
        padding: str = "SAME",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            inputs,
            outputs,
            (kernel, kernel),
            padding=padding,
            use_bias=bias,
            kernel_init=fan_in_normal,
            bias_init=constant(0),
            dtype=dtype,
            rngs=rngs,
        )


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis with the releases' epsilon."""

    def __init__(self, dim: int, *, epsilon: float = NORM_EPSILON, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            dim,
            epsilon=epsilon,
            use_fast_variance=False,
            bias_init=constant(0),
            scale_init=constant(1),
            dtype=dtype,
            rngs=rngs,
        )


class GroupNorm(nnx.GroupNorm):
    """Group normalisation with torch's epsilon."""

    def __init__(self, dim: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            dim,
            groups,
            epsilon=NORM_EPSILON,
            use_fast_variance=False,
            bias_init=constant(0),
            scale_init=constant(1),
            dtype=dtype,
            rngs=rngs,
        )


def divides(batch: int) -> bool:
    """Whether the mesh in view, if there is one, shares so many examples out evenly."""
    return batch % jax.sharding.get_abstract_mesh().shape.get(DATA, 1) == 0


def on_each_device(call: Callable[..., Array], inputs: tuple[P, ...]) -> Callable[..., Array]:
    """`call` on each device's own examples, for kernels, which the compiler cannot cut; or as it is, without a mesh.

    Args:
        call: takes and returns whole trees of arrays, those of examples with the batch first.
        inputs: P(DATA) for what has examples, P() for what is the same everywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.auto_axes:
        return call
    return jax.shard_map(call, mesh=mesh, in_specs=inputs, out_specs=P(DATA), check_vma=False)


def over_batch(x: Float[Array, "b *n"], axis: int = 0) -> Float[Array, "b *n"]:
    """x, each device keeping its own examples and all else of them; x as it is where no mesh with `DATA` is in view.

    Said at the borders of blocks, so that the compiler moves parameters (FSDP) or sums (tensor parallelism) between
    devices and never turns to cutting activations in other ways. A batch that does not divide is filled up.

    Args:
        x: activations.
        axis: which of its axes is the batch.
    """
    if DATA not in jax.sharding.get_abstract_mesh().auto_axes:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * axis, DATA))


def attend(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    *,
    causal: bool = False,
    kernel: Kernel = "auto",
) -> Float[Array, "b n heads d"]:
    """softmax(q k / sqrt(d)) v.

    Args:
        query, key, value: of any float type; "cudnn" takes bfloat16 alone.
        causal: token i sees the tokens up to i.
        kernel: "xla", plain matrix products; "cudnn", the flash attention of NVIDIA's library; "splash", that of JAX
            for TPUs, where the batch divides; "auto", plain products too, except that long sequences go in parts on a
            CPU (see `_attend_in_parts`).

    Raises:
        UserError: "cudnn" without a GPU or with another type, "splash" without a TPU.
    """
    if kernel == "splash":
        if not has_kernel(kernel, query.dtype):
            raise UserError(
                f"model.attention 'splash' needs a TPU, and this is {jax.default_backend()}; "
                "set --config.model.attention=auto."
            )
        if divides(len(query)):
            from dinov3seg_jax.models.splash import splash_attention  # here, because importing Pallas takes a while

            return on_each_device(partial(splash_attention, causal=causal), (P(DATA),) * 3)(query, key, value)
    if kernel == "cudnn":
        if not has_kernel(kernel, query.dtype):
            raise UserError(
                f"model.attention 'cudnn' needs a GPU and bfloat16, and this is {query.dtype} on "
                f"{jax.default_backend()}; set --config.model.attention=auto, or on a GPU model.dtype=bfloat16."
            )
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")
    if kernel in ("xla", "splash") or causal or key.shape[1] < LONG:
        before = penalty(np.tri(query.shape[1], key.shape[1], dtype=bool)) if causal else None
        return dot_product_attention(query, key, value, before)
    return jax.lax.platform_dependent(
        query, key, value, cpu=_attend_in_parts, default=lambda q, k, v: dot_product_attention(q, k, v)
    )


def dot_product_attention(
    query: Float[Array, "*b n heads d"],
    key: Float[Array, "*b m heads d"],
    value: Float[Array, "*b m heads d"],
    bias: Float[np.ndarray | Array, "*b heads n m"] | None = None,
) -> Float[Array, "*b n heads d"]:
    """softmax(q k / sqrt(d) + bias) v.

    Scores and softmax are float32, whatever the dtype; the sum divides the d channels instead of the m weights. As
    `jax.nn.dot_product_attention`, which takes 1.4 to 6 times as long on a CPU.

    Args:
        query, key, value: of any float type.
        bias: of any shape that broadcasts; see `penalty`.
    """
    query, key, value = (jnp.swapaxes(part, -3, -2) for part in (query, key, value))
    scores = jnp.einsum("...nd,...md->...nm", query, key, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("...nm,...md->...nd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return jnp.swapaxes((mixed / weights.sum(axis=-1, keepdims=True)).astype(value.dtype), -3, -2)


def penalty(allowed: Bool[np.ndarray | Array, "*n"]) -> Float[np.ndarray | Array, "*n"]:
    """A bias that keeps pairs apart that are not allowed; it costs a CPU less than choosing."""
    numpy_or_jax = np if isinstance(allowed, np.ndarray) else jnp
    return numpy_or_jax.where(allowed, np.float32(0), np.float32(-1e30))


def _attend_in_parts(query: Array, key: Array, value: Array) -> Array:
    """One image or one head at a time, so that its scores stay in the cache: up to 3 times as fast, in less memory."""
    b, n, heads, d = query.shape
    if heads * n * key.shape[1] <= SCORES_OF_AN_IMAGE:
        return jax.lax.map(lambda image: dot_product_attention(*image), (query, key, value))
    rows = tuple(x.swapaxes(1, 2).reshape(b * heads, -1, 1, d) for x in (query, key, value))
    attended = jax.lax.map(lambda head: dot_product_attention(*head), rows)
    return attended.reshape(b, heads, -1, d).swapaxes(1, 2)


class Attention(nnx.Module):
    """Multi-head self-attention; query, key and value are separate so that each can train by itself (§1)."""

    def __init__(
        self, dim: int, heads: int, *, qkv_bias: bool, kernel: Kernel = "auto", dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.heads, self.kernel = heads, kernel
        self.query = Linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.key = Linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.value = Linear(dim, dim, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def project(self, x: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Return query, key and value, each [b, n, heads, d / heads]."""
        shape = (*x.shape[:-1], self.heads, -1)
        return self.query(x).reshape(shape), self.key(x).reshape(shape), self.value(x).reshape(shape)

    def __call__(
        self, x: Float[Array, "b n d"], *, rotate: Rotation | None = None, causal: bool = False
    ) -> Float[Array, "b n d"]:
        """Attend among the n tokens; `rotate` is applied to queries and keys."""
        query, key, value = self.project(x)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        attended = attend(query, key, value, causal=causal, kernel=self.kernel)
        return self.out(attended.reshape(x.shape))


class Mlp(nnx.Module):
    """Two dense layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        return self.down(gelu(self.up(x)))


class SwiGlu(nnx.Module):
    """down(silu(gate(x)) * up(x)). The hidden width is two thirds of `hidden`, rounded up to `align`."""

    def __init__(self, dim: int, hidden: int, align: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        hidden = -(-int(hidden * 2 / 3) // align) * align
        self.gate = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Pre-norm transformer block: x + ls1 * attention(norm1(x)), then x + ls2 * ffn(norm2(x))."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        ffn: Literal["mlp", "swiglu"] = "mlp",
        ffn_ratio: float = 4.0,
        ffn_align: int = 8,
        qkv_bias: bool = True,
        layerscale_init: float | None = None,
        kernel: Kernel = "auto",
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`layerscale_init` None leaves LayerScale out, as the text tower does; `kernel` is that of `attend`."""
        hidden = int(dim * ffn_ratio)
        self.norm1 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.attention = Attention(dim, heads, qkv_bias=qkv_bias, kernel=kernel, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ffn = (
            Mlp(dim, hidden, dtype=dtype, rngs=rngs)
            if ffn == "mlp"
            else SwiGlu(dim, hidden, ffn_align, dtype=dtype, rngs=rngs)
        )
        self.has_layerscale = layerscale_init is not None
        if layerscale_init is not None:
            self.ls1 = nnx.Param(np.full(dim, layerscale_init, np.float32))
            self.ls2 = nnx.Param(np.full(dim, layerscale_init, np.float32))

    def __call__(
        self, x: Float[Array, "b n d"], *, rotate: Rotation | None = None, causal: bool = False
    ) -> Float[Array, "b n d"]:
        attended = self.attention(self.norm1(x), rotate=rotate, causal=causal)
        x = x + (attended * self.ls1.astype(x.dtype) if self.has_layerscale else attended)
        transformed = self.ffn(self.norm2(x))
        return x + (transformed * self.ls2.astype(x.dtype) if self.has_layerscale else transformed)


def stack(create: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Create `depth` equal blocks as one module whose parameters carry a leading depth axis."""
    if isinstance(rngs.params.key.get_value(), jax.core.Tracer):
        return nnx.vmap(create, in_axes=0, out_axes=0)(rngs.split(depth))  # traced once, whatever the depth
    graph, first = nnx.split(create(rngs))
    states = [first, *(nnx.state(create(rngs)) for _ in range(depth - 1))]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: np.stack(leaves), *states))


def run_stack(
    blocks: nnx.Module,
    x: Array,
    apply: Callable[..., Array],
    *,
    start: int = 0,
    stop: int,
    frozen: bool = False,
    remat: bool = False,
    every: bool = False,
) -> Array:
    """Scan x through blocks start..stop-1 of a stack, so that compile time does not grow with depth.

    Args:
        blocks: from `stack`.
        x: what the first block takes, its first axis the batch (see `over_batch`).
        apply: (block, x) -> x.
        start, stop: which of the blocks.
        frozen: cut these blocks off from the backward pass; nothing is computed or kept for them there.
        remat: recompute each block in the backward pass instead of keeping its activations.
        every: return what each of the blocks gives, [stop - start, ...], and not the last one's alone.
    """
    graph, parameters = nnx.split(blocks)
    if frozen:
        x, parameters = jax.lax.stop_gradient((x, parameters))

    def step(x: Array, layer: nnx.State) -> tuple[Array, Array | None]:
        x = over_batch(apply(nnx.merge(graph, widen(layer)), x))
        return x, x if every else None

    def step_of_all(x: Array, index: Array) -> tuple[Array, Array | None]:
        return step(x, jax.tree.map(lambda leaf: leaf[index], parameters))

    # A part of a stack is a copy of it, and only gradients need one.
    body, layers = (
        (step_of_all, jnp.arange(start, stop))
        if frozen
        else (step, jax.tree.map(lambda leaf: leaf[start:stop], parameters))
    )
    last, all_of_them = jax.lax.scan(jax.checkpoint(body) if remat and not frozen else body, over_batch(x), layers)
    return all_of_them if every else last


def recomputed(call: Callable[..., Array], remat: bool) -> Callable[..., Array]:
    """`call`, whose backward pass recomputes it, if `remat`, instead of keeping its activations."""
    return jax.checkpoint(lambda *arguments: call(*arguments)) if remat else call


class Upsample(nnx.Module):
    """Transposed convolution whose stride equals its kernel: every cell becomes a factor x factor patch."""

    def __init__(self, inputs: int, outputs: int, factor: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.factor = factor
        self.outputs = outputs
        self.kernel = nnx.Param(fan_in_normal(rngs.params(), (inputs, factor * factor * outputs)))
        self.bias = nnx.Param(np.zeros(outputs, np.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        b, h, w, _ = x.shape
        f, o = self.factor, self.outputs
        patches = (x.astype(self.dtype) @ self.kernel.astype(self.dtype)).reshape(b, h, w, f, f, o)
        patches = patches + self.bias.astype(self.dtype)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * f, w * f, o)
