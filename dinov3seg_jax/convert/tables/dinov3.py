"""Official DINOv3 backbones (its specification, section 6) -> `VisionTransformer`."""

from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Row, Rule, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import flat, linear_thirds, patches, thirds, unbatched

QUERY_KEY_VALUE = ("query", "key", "value")


def fused(source: str, target: str) -> tuple[Rule, Rule]:
    """A fused qkv layer. Where there is a bias mask, the bias is multiplied by it and the mask is used up."""
    kernels = tuple(f"{target}/{part}/kernel" for part in QUERY_KEY_VALUE)
    biases = tuple(f"{target}/{part}/bias" for part in QUERY_KEY_VALUE)
    return (
        Rule(rf"{source}\.weight", kernels, linear_thirds),
        Rule(rf"{source}\.bias", biases, thirds, mask=r"\g<0>_mask"),
    )


BLOCK: tuple[Row, ...] = (
    *norm("norm1", "norm1"),
    *fused(r"attn\.qkv", "attention"),
    *dense(r"attn\.proj", "attention/out"),
    rule(r"(?P<scale>ls[12])\.gamma", r"\g<scale>"),
    *norm("norm2", "norm2"),
    *dense(r"mlp\.(?:fc1|w2)", "ffn/up"),
    *dense(r"mlp\.w1", "ffn/gate"),
    *dense(r"mlp\.(?:fc2|w3)", "ffn/down"),
)

BLOCKS = prefixed(BLOCK, source=r"blocks\.(?P<layer>\d+)\.", target="blocks/")

RULES: tuple[Row, ...] = (
    rule("cls_token", "cls_token", flat),
    rule("(?:storage|register)_tokens", "storage_tokens", unbatched),
    rule("mask_token", "mask_token", flat),
    *dense(r"patch_embed\.proj", "patch_embed/projection", patches),
    rule(r"rope_embed\.periods", "periods"),  # as stored: releases hold rounded ones
    *BLOCKS,
    *norm("norm", "norm"),
    *norm("cls_norm", "cls_norm"),
    drop(r"local_cls_norm\.(?:weight|bias)"),  # for training only
)
