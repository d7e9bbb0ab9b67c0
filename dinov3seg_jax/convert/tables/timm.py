"""DINOv3 in timm's layout, its `vit_*_patch16_dinov3*` models -> `VisionTransformer`.

It computes what the official model does, with the same order of heads and of rotary frequencies. It stores neither
periods nor mask token, and of the biases of queries, keys and values at most the first and the last.
"""

import numpy as np

from dinov3seg_jax.convert.tables.huggingface import fill_periods
from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Fill, Row, Rule, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import flat, linear_thirds, patches, unbatched

BLOCK: tuple[Row, ...] = (
    *norm("norm1", "norm1"),
    Rule(r"attn\.qkv\.weight", tuple(f"attention/{part}/kernel" for part in ("query", "key", "value")), linear_thirds),
    rule(r"attn\.q_bias", "attention/query/bias"),
    rule(r"attn\.v_bias", "attention/value/bias"),
    *dense(r"attn\.proj", "attention/out"),
    rule(r"gamma_(?P<number>[12])", r"ls\g<number>"),
    *norm("norm2", "norm2"),
    *dense(r"mlp\.fc1(?:_x)?", "ffn/up"),
    *dense(r"mlp\.fc1_g", "ffn/gate"),
    *dense(r"mlp\.fc2", "ffn/down"),
)


def rules(*, biased: bool, rounded_periods: bool = False) -> tuple[Row, ...]:
    """The table.

    Args:
        biased: the file holds the biases of queries and values. Where it does not, they are zero, as in the releases.
        rounded_periods: see `dinov3seg_jax.convert.tables.huggingface.rules`.
    """
    absent = "key" if biased else "query|key|value"
    return (
        rule("cls_token", "cls_token", flat),
        rule("reg_token", "storage_tokens", unbatched),
        *dense(r"patch_embed\.proj", "patch_embed/projection", patches),
        *prefixed(BLOCK, source=r"blocks\.(?P<layer>\d+)\.", target="blocks/"),
        *norm("norm", "norm"),
        fill_periods(100.0, rounded=rounded_periods),
        Fill(f"blocks/attention/(?:{absent})/bias", lambda shape: np.zeros(shape, np.float32)),
        Fill("mask_token", lambda shape: np.zeros(shape, np.float32)),  # of training only
    )
