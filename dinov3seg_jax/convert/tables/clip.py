"""OpenAI's CLIP -> the towers "clip". CAT-Seg's files hold the same with query, key and value split."""

import math

import numpy as np

from dinov3seg_jax.convert.tables.dinov3 import QUERY_KEY_VALUE
from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Row, Rule, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import flat, keep, linear, linear_thirds, patches, thirds


def class_and_grid(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[1 + g * g, d] positions -> that of the class token, and a grid."""
    side = math.isqrt(x.shape[0] - 1)
    return x[0], x[1:].reshape(side, side, x.shape[1])


FUSED_BLOCK: tuple[Row, ...] = (
    *norm("ln_1", "norm1"),
    Rule(r"attn\.in_proj_weight", tuple(f"attention/{part}/kernel" for part in QUERY_KEY_VALUE), linear_thirds),
    Rule(r"attn\.in_proj_bias", tuple(f"attention/{part}/bias" for part in QUERY_KEY_VALUE), thirds),
    *dense(r"attn\.out_proj", "attention/out"),
    *norm("ln_2", "norm2"),
    *dense(r"mlp\.c_fc", "ffn/up"),
    *dense(r"mlp\.c_proj", "ffn/down"),
)

BLOCK: tuple[Row, ...] = (
    *FUSED_BLOCK,
    rule(r"attn\.q_proj_weight", "attention/query/kernel", linear),
    rule(r"attn\.k_proj_weight", "attention/key/kernel", linear),
    rule(r"attn\.v_proj_weight", "attention/value/kernel", linear),
)

VISION: tuple[Row, ...] = (
    rule("class_embedding", "cls_token"),
    Rule("positional_embedding", ("cls_position", "positions"), class_and_grid),
    rule(r"conv1\.weight", "patch_embed/projection/kernel", patches),
    *norm("ln_pre", "norm_before"),
    *prefixed(BLOCK, source=r"transformer\.resblocks\.(?P<layer>\d+)\.", target="blocks/"),
    *norm("ln_post", "norm"),
    rule("proj", "projection/kernel", keep),
)

TEXT: tuple[Row, ...] = (
    rule(r"token_embedding\.weight", "token_embedding"),
    rule("positional_embedding", "positional_embedding"),
    *prefixed(BLOCK, source=r"transformer\.resblocks\.(?P<layer>\d+)\.", target="blocks/"),
    *norm("ln_final", "norm"),
    rule("text_projection", "projection/kernel", keep),
    rule("logit_scale", "logit_scale", flat),
)

RULES: tuple[Row, ...] = (
    *prefixed(VISION, source=r"visual\.", target="vision/"),
    *prefixed(TEXT, target="text/"),
    drop("input_resolution|context_length|vocab_size"),  # which shapes say too
    drop(r"(?:.*\.)?attn_mask"),  # an archive may hold the causal mask, which follows from the length
)
