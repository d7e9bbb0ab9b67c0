"""CAT-Seg -> the whole model. `RULES` are for its aggregator alone, `WHOLE` for a released file, CLIP included."""

from dinov3seg_jax.convert.tables import clip
from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Row, Rule, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import convolution, flat, linear_guided, transposed_convolution

CHECKPOINT_PREFIX = r"sem_seg_head\.predictor\.transformer\."
CLIP_PREFIX = r"sem_seg_head\.predictor\.clip_model\."


def _guided(source: str, target: str) -> tuple[Rule, Rule]:
    """A dense layer on [own channels | guidance]: two layers here."""
    return (
        Rule(rf"{source}\.weight", (f"{target}/kernel", f"{target}_guidance/kernel"), linear_guided),
        rule(rf"{source}\.bias", f"{target}/bias"),
    )


SWIN_BLOCK: tuple[Row, ...] = (
    *norm("norm1", "norm1"),
    *_guided(r"attn\.q", "attention/query"),
    *_guided(r"attn\.k", "attention/key"),
    *dense(r"attn\.v", "attention/value"),
    *dense(r"attn\.proj", "attention/out"),
    drop("attn_mask"),  # follows from the grid
    *norm("norm2", "norm2"),
    *dense(r"mlp\.fc1", "ffn/up"),
    *dense(r"mlp\.fc2", "ffn/down"),
)

SPATIAL_BLOCK: tuple[Row, ...] = (
    *norm("guidance_norm", "guidance_norm"),
    *prefixed(SWIN_BLOCK, source=r"block_1\.", target="windowed/"),
    *prefixed(SWIN_BLOCK, source=r"block_2\.", target="shifted/"),
)

CLASS_BLOCK: tuple[Row, ...] = (
    *norm("norm1", "norm1"),
    *_guided(r"attention\.q", "attention/query"),
    *_guided(r"attention\.k", "attention/key"),
    *dense(r"attention\.v", "attention/value"),
    *norm("norm2", "norm2"),
    *dense(r"MLP\.0", "ffn/up"),
    *dense(r"MLP\.2", "ffn/down"),
    rule("padding_tokens", "padding", flat),
    rule("padding_guidance", "padding_guidance", flat),
)

STAGE: tuple[Row, ...] = (
    *dense("up", "upsample", transposed_convolution),
    rule(r"conv\.double_conv\.0\.weight", "conv1/conv/kernel", convolution),
    *norm(r"conv\.double_conv\.1", "conv1/norm"),
    rule(r"conv\.double_conv\.3\.weight", "conv2/conv/kernel", convolution),
    *norm(r"conv\.double_conv\.4", "conv2/norm"),
)

DECODER: tuple[Row, ...] = (
    *prefixed(STAGE, source=r"decoder(?P<stage>[12])\.", target=r"stage\g<stage>/"),
    *dense("head", "head", convolution),
)

RULES: tuple[Row, ...] = (
    *dense("conv1", "embed_correlation/conv", convolution),
    *dense(r"guidance_projection\.0", "guidance/project_appearance/conv", convolution),
    *dense(r"decoder_guidance_projection\.0\.0", "guidance/project_middle/conv", convolution),
    *dense(r"decoder_guidance_projection\.1\.0", "guidance/project_fine/conv", convolution),
    *dense(r"text_guidance_projection\.0", "project_text"),
    *prefixed(SPATIAL_BLOCK, source=r"layers\.(?P<number>\d+)\.swin_block\.", target=r"late/spatial/\g<number>/"),
    *prefixed(CLASS_BLOCK, source=r"layers\.(?P<number>\d+)\.attention\.", target=r"late/classes/\g<number>/"),
    *prefixed(DECODER, target="decoder/"),
)

WHOLE: tuple[Row, ...] = (
    *prefixed(RULES, source=CHECKPOINT_PREFIX),
    *prefixed(clip.RULES, source=CLIP_PREFIX),
    *dense("upsample1", "guidance/lift_middle", transposed_convolution),
    *dense("upsample2", "guidance/lift_fine", transposed_convolution),
)
