"""SAM's image encoder -> `SamEncoder`."""

import dataclasses

from dinov3seg_jax.config import SamConfig
from dinov3seg_jax.convert.tables.dinov3 import fused
from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Row, Rule, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import convolution, patches, pointwise, unbatched

CHECKPOINT_PREFIX = r"image_encoder\."
REST_OF_CHECKPOINT = (drop(r"(?:prompt_encoder|mask_decoder)\..*"),)  # what a released file holds besides

BLOCK: tuple[Rule, ...] = (
    *norm("norm1", "norm1"),
    *fused(r"attn\.qkv", "attention"),
    rule(r"attn\.(?P<table>rel_pos_[hw])", r"attention/\g<table>"),
    *dense(r"attn\.proj", "attention/out"),
    *norm("norm2", "norm2"),
    *dense(r"mlp\.lin1", "ffn/up"),
    *dense(r"mlp\.lin2", "ffn/down"),
)


def rules(config: SamConfig) -> tuple[Row, ...]:
    """The table; windowed and global blocks are two stacks."""
    window_blocks = tuple(number for number in range(config.depth) if number not in config.global_blocks)
    return (
        *dense(r"patch_embed\.proj", "patch_embed/projection", patches),
        rule("pos_embed", "pos_embed", unbatched),
        *_stacked(window_blocks, "window_blocks/"),
        *_stacked(config.global_blocks, "global_blocks/"),
        rule(r"neck\.0\.weight", "neck_conv1/kernel", pointwise),
        *norm(r"neck\.1", "neck_norm1"),
        rule(r"neck\.2\.weight", "neck_conv2/kernel", convolution),
        *norm(r"neck\.3", "neck_norm2"),
    )


def _stacked(numbers: tuple[int, ...], target: str) -> tuple[Row, ...]:
    rows = (dataclasses.replace(row, layers=numbers) for row in BLOCK)
    alternatives = "|".join(map(str, numbers))
    return prefixed(rows, source=rf"blocks\.(?P<layer>{alternatives})\.", target=target) if numbers else ()
