"""Attention by JAX's splash kernel for TPUs, which keeps no scores in memory."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float

LANES = 128  # sequences are filled up to a multiple
BLOCKS = (512, 384, 256, LANES)  # tokens at once: the largest that divides the sequence


def splash_attention(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b n heads d"],
    value: Float[Array, "b n heads d"],
    *,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "b n heads d"]:
    """softmax(q k / sqrt(d)) v.

    Args:
        query, key, value: of any float type.
        causal: token i sees the tokens up to i.
        interpret: run anywhere, slowly.
    """
    _, n, heads, d = query.shape
    length = -(-n // LANES) * LANES
    mask = (splash.CausalMask if causal else splash.FullMask)((length, length))
    block = next(size for size in BLOCKS if length % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    there = (jnp.arange(length) < n).astype(jnp.int32)  # what fills up is kept apart as another text would be
    segments = splash.SegmentIds(there, there)

    def fill(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, length - n), (0, 0), (0, 0))).swapaxes(1, 2)

    attended = jax.vmap(functools.partial(kernel, segment_ids=segments))(fill(query * d**-0.5), fill(key), fill(value))
    return attended.swapaxes(1, 2)[:, :n].astype(query.dtype)
