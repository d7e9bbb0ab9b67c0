"""dinov3.txt (DINOv3's specification, section 8) -> the `vision/` and `text/` parts of the whole model.

It is released as two files, for `BACKBONE` and for `HEAD_AND_TEXT`; `RULES` is for both in one.
"""

from dinov3seg_jax.convert.tables import dinov3
from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Row, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import linear

TEXT_BLOCK: tuple[Row, ...] = (
    *norm("attention_norm", "norm1"),
    *dinov3.fused(r"attention\.qkv", "attention"),
    *dense(r"attention\.proj", "attention/out"),
    *norm("ffn_norm", "norm2"),
    *dense(r"feed_forward\.fc1", "ffn/up"),
    *dense(r"feed_forward\.fc2", "ffn/down"),
)

VISION_HEAD: tuple[Row, ...] = (*dinov3.BLOCKS, *norm("ln_final", "norm"))

TEXT: tuple[Row, ...] = (
    rule(r"backbone\.token_embedding\.weight", "token_embedding"),
    rule(r"backbone\.positional_embedding", "positional_embedding"),
    *prefixed(TEXT_BLOCK, source=r"backbone\.blocks\.(?P<layer>\d+)\.", target="blocks/"),
    *norm(r"backbone\.ln_final", "norm"),
    rule(r"head\.linear_projection\.weight", "projection/kernel", linear),
)

BACKBONE = prefixed(dinov3.RULES, target="vision/backbone/")

HEAD_AND_TEXT: tuple[Row, ...] = (
    *prefixed(VISION_HEAD, source=r"visual_model\.head\.", target="vision/head/"),
    *prefixed(TEXT, source=r"text_model\.", target="text/"),
    rule("logit_scale", "text/logit_scale"),
)

RULES: tuple[Row, ...] = (*prefixed(BACKBONE, source=r"visual_model\.backbone\."), *HEAD_AND_TEXT)
