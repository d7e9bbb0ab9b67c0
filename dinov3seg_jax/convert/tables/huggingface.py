"""`DINOv3ViTModel` of Hugging Face (DINOv3's specification, section 7) -> `VisionTransformer`."""

import jax.numpy as jnp
import numpy as np

from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Fill, Row, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import flat, patches, unbatched
from dinov3seg_jax.models.rope import rope_periods

BLOCK: tuple[Row, ...] = (
    *norm("norm1", "norm1"),
    *dense(r"attention\.q_proj", "attention/query"),
    *dense(r"attention\.k_proj", "attention/key"),
    *dense(r"attention\.v_proj", "attention/value"),
    *dense(r"attention\.o_proj", "attention/out"),
    rule(r"layer_scale(?P<number>[12])\.lambda1", r"ls\g<number>"),
    *norm("norm2", "norm2"),
    *dense(r"mlp\.(?P<part>up|gate|down)_proj", r"ffn/\g<part>"),
)


def rules(rope_theta: float = 100.0, *, rounded_periods: bool = False) -> tuple[Row, ...]:
    """The table, for keys as on disk and as in memory.

    Args:
        rope_theta: of the model's config.json; periods are not stored.
        rounded_periods: round them to bf16, as in the official files, instead of what this source computes with.
    """
    return (
        rule(r"embeddings\.cls_token", "cls_token", flat),
        rule(r"embeddings\.register_tokens", "storage_tokens", unbatched),
        rule(r"embeddings\.mask_token", "mask_token", flat),
        *dense(r"embeddings\.patch_embeddings", "patch_embed/projection", patches),
        *prefixed(BLOCK, source=r"(?:model\.)?layer\.(?P<layer>\d+)\.", target="blocks/"),
        *norm("norm", "norm"),
        fill_periods(rope_theta, rounded=rounded_periods),
        Fill("blocks/attention/key/bias", lambda shape: np.zeros(shape, np.float32)),  # keys have none there
    )


def fill_periods(base: float, *, rounded: bool) -> Fill:
    """Rotary periods that the file does not store."""

    def periods(shape: tuple[int, ...]) -> np.ndarray:
        exact = rope_periods(4 * shape[0], base)
        return exact.astype(jnp.bfloat16).astype(np.float32) if rounded else exact

    return Fill("periods", periods)
