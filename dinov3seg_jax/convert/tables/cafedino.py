"""CAFe-DINO's own parts -> `CafeDino`; what it holds of dinov3.txt and AnyUp have tables of their own."""

from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Row, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import convolution, pointwise

TOWERS = r"backbone\."
UPSAMPLER = r"upsampler\."

SWIN_BLOCK: tuple[Row, ...] = (
    *norm("norm1", "norm1"),
    rule(r"attn\.relative_position_bias_table", "attention/bias_table"),
    *dense(r"attn\.q", "attention/query"),
    *dense(r"attn\.k", "attention/key"),
    *dense(r"attn\.v", "attention/value"),
    *dense(r"attn\.proj", "attention/out"),
    *norm("norm2", "norm2"),
    *dense(r"mlp\.fc1", "ffn/up"),
    *dense(r"mlp\.fc2", "ffn/down"),
)

LAYER: tuple[Row, ...] = (
    *norm(r"spatial_agg\.guidance_norm", "spatial/guidance_norm"),
    *prefixed(SWIN_BLOCK, source=r"spatial_agg\.swin1\.", target="spatial/windowed/"),
    *prefixed(SWIN_BLOCK, source=r"spatial_agg\.swin2\.", target="spatial/shifted/"),
    *norm(r"class_agg\.guidance_norm", "classes/guidance_norm"),
    *dense(r"class_agg\.q", "classes/query"),
    *dense(r"class_agg\.k", "classes/key"),
    *dense(r"class_agg\.v", "classes/value"),
    *norm(r"class_agg\.norm", "classes/norm"),
    *dense(r"class_agg\.ffn\.0", "classes/ffn/up"),
    *dense(r"class_agg\.ffn\.2", "classes/ffn/down"),
)


def _batch_norm(source: str, target: str) -> tuple[Row, ...]:
    return (
        *norm(source, target),
        rule(rf"{source}\.running_mean", f"{target}/mean"),
        rule(rf"{source}\.running_var", f"{target}/var"),
        drop(rf"{source}\.num_batches_tracked"),
    )


RULES: tuple[Row, ...] = (
    *dense("corr_embed", "embed_correlation/conv", convolution),
    *dense(r"text_guidance_projection\.0", "project_text"),
    *dense(r"vis_guidance_projection\.0", "project_appearance", convolution),
    *prefixed(LAYER, source=r"aggregator\.(?P<layer>\d+)\.", target="layers/"),
    *dense(r"reduce_d\.0", "reduction/dense1", pointwise),
    *_batch_norm(r"reduce_d\.1", "reduction/norm1"),
    *dense(r"reduce_d\.3", "reduction/dense2", pointwise),
    *_batch_norm(r"reduce_d\.4", "reduction/norm2"),
    *dense(r"reduce_d\.6", "reduction/dense3", pointwise),
)
