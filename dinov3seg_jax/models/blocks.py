"""Transformer blocks, stacks of equal ones, and how a stack runs."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.models.attention import Attention, Rotation
from dinov3seg_jax.models.functions import gelu
from dinov3seg_jax.models.kernels import Kernel
from dinov3seg_jax.models.layers import LayerNorm, Linear
from dinov3seg_jax.models.mesh import over_batch
from dinov3seg_jax.models.quantized import widen


class Mlp(nnx.Module):
    """Two dense layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        return self.down(gelu(self.up(x)))


class QuickMlp(Mlp):
    """Two dense layers with CLIP's QuickGELU between them: x * sigmoid(1.702 x)."""

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        hidden = self.up(x)
        return self.down(hidden * jax.nn.sigmoid(1.702 * hidden))


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
        ffn: Literal["mlp", "quick_gelu", "swiglu"] = "mlp",
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
            SwiGlu(dim, hidden, ffn_align, dtype=dtype, rngs=rngs)
            if ffn == "swiglu"
            else (Mlp if ffn == "mlp" else QuickMlp)(dim, hidden, dtype=dtype, rngs=rngs)
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


def states_after(
    blocks: nnx.Module,
    x: Array,
    apply: Callable[..., Array],
    stops: Sequence[int],
    *,
    frozen_blocks: int = 0,
    remat: bool = False,
) -> dict[int, Array]:
    """x after the first `stop` blocks of a stack, for each of `stops`: increasing, from 1 on.

    Args:
        blocks, x, apply, remat: as for `run_stack`.
        stops: how many blocks.
        frozen_blocks: the first blocks, which get no gradient.
    """
    states = {}
    cut = min(frozen_blocks, stops[-1])
    for start, stop in itertools.pairwise(sorted({0, cut, *(stop for stop in stops if stop < cut)})):
        x = states[stop] = run_stack(blocks, x, apply, start=start, stop=stop, frozen=True)
    if cut < stops[-1]:  # in one go: a part of a stack that trains is a copy of it
        after = run_stack(blocks, x, apply, start=cut, stop=stops[-1], every=True, remat=remat)
        states |= {stop: after[stop - cut - 1] for stop in stops if stop > cut}
    return states


def recomputed(call: Callable[..., Array], remat: bool) -> Callable[..., Array]:
    """`call`, whose backward pass recomputes it, if `remat`, instead of keeping its activations."""
    return jax.checkpoint(lambda *arguments: call(*arguments)) if remat else call
