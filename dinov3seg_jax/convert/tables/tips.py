"""TIPSv2's towers: the hub's names, PyTorch's .npz files (one for each tower), and Scenic's.

Scenic's files have LayerScale and the position of the class token folded into other weights.
"""

import numpy as np

from dinov3seg_jax.convert.tables import clip
from dinov3seg_jax.convert.tables.dinov3 import fused
from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Fill, Row, Rule, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import flat, patches, unbatched


def class_and_grid(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[1, 1 + g * g, d] positions -> that of the class token, and a grid."""
    return clip.class_and_grid(x[0])


def linear_halves(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """A fused (2 out, in) weight whose rows are the gate and what it gates."""
    return tuple(part.T for part in np.split(x, 2))


def halves(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The bias of `linear_halves`."""
    return tuple(np.split(x, 2))


VISION_BLOCK: tuple[Row, ...] = (
    *norm("norm1", "norm1"),
    *fused(r"attn\.qkv", "attention"),
    *dense(r"attn\.proj", "attention/out"),
    rule(r"(?P<scale>ls[12])\.gamma", r"\g<scale>"),
    *norm("norm2", "norm2"),
    *dense(r"mlp\.(?:fc1|c_fc)", "ffn/up"),  # c_fc, c_proj: as `transformers` writes a model that it had in memory
    Rule(r"mlp\.w12\.weight", ("ffn/gate/kernel", "ffn/up/kernel"), linear_halves),
    Rule(r"mlp\.w12\.bias", ("ffn/gate/bias", "ffn/up/bias"), halves),
    *dense(r"mlp\.(?:fc2|c_proj|w3)", "ffn/down"),
)

VISION: tuple[Row, ...] = (
    rule("cls_token", "cls_first", flat),
    rule("register_tokens", "cls_second", flat),
    Rule("pos_embed", ("cls_position", "positions"), class_and_grid),
    drop("mask_token"),  # for training only
    *dense(r"patch_embed\.proj", "patch_embed/projection", patches),
    *prefixed(VISION_BLOCK, source=r"blocks\.(?P<layer>\d+)\.", target="blocks/"),
    *norm("norm", "norm"),
)

TEXT: tuple[Row, ...] = (
    rule(r"token_embedding\.weight", "token_embedding"),
    *prefixed(clip.FUSED_BLOCK, source=r"transformer\.resblocks\.(?P<layer>\d+)\.", target="blocks/"),
    *norm("ln_final", "norm"),
    drop("temperature|temperature_contrastive"),  # segmentation compares cosines as they are
)

HUB: tuple[Row, ...] = (
    *prefixed(VISION, source=r"vision_encoder\.", target="vision/"),
    *prefixed(TEXT, source=r"text_encoder\.", target="text/"),
    drop("temperature"),
)


def scenic_kernel(x: np.ndarray) -> tuple[np.ndarray]:
    """(in, heads, d) -> (in, heads * d)."""
    return (x.reshape(x.shape[0], -1),)


def scenic_out(x: np.ndarray) -> tuple[np.ndarray]:
    """(heads, d, out) -> (heads * d, out)."""
    return (x.reshape(-1, x.shape[-1]),)


def scenic_patches(x: np.ndarray) -> tuple[np.ndarray]:
    """A convolution, HWIO, as a dense layer over (row, column, channel)."""
    return (x.reshape(-1, x.shape[-1]),)


def two_tokens(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """[1, 2, d] -> both class tokens."""
    return x[0, 0], x[0, 1]


SCENIC_BLOCK: tuple[Row, ...] = (
    rule("LayerNorm_0/(?P<part>scale|bias)", r"norm1/\g<part>"),
    rule("LayerNorm_1/(?P<part>scale|bias)", r"norm2/\g<part>"),
    rule(
        "MultiHeadDotProductAttention_0/(?P<part>query|key|value)/kernel", r"attention/\g<part>/kernel", scenic_kernel
    ),
    rule("MultiHeadDotProductAttention_0/(?P<part>query|key|value)/bias", r"attention/\g<part>/bias", flat),
    rule("MultiHeadDotProductAttention_0/out/kernel", "attention/out/kernel", scenic_out),
    rule("MultiHeadDotProductAttention_0/out/bias", "attention/out/bias"),
    rule("MlpBlock_0/Dense_0/(?P<part>kernel|bias)", r"ffn/up/\g<part>"),
    rule("MlpBlock_0/Dense_1/(?P<part>kernel|bias)", r"ffn/down/\g<part>"),
    rule("FFNSwiGluFused_0/Dense_0/(?P<part>kernel|bias)", r"ffn/gate/\g<part>"),
    rule("FFNSwiGluFused_0/Dense_1/(?P<part>kernel|bias)", r"ffn/up/\g<part>"),
    rule("FFNSwiGluFused_0/Dense_2/(?P<part>kernel|bias)", r"ffn/down/\g<part>"),
)

SCENIC_BLOCKS = prefixed(SCENIC_BLOCK, source=r"transformer/encoderblock_(?P<layer>\d+)/", target="blocks/")

SCENIC_TOKENS: tuple[Row, ...] = (
    Rule("ToTokenSequence_0/cls", ("cls_first", "cls_second"), two_tokens),
    rule("ToTokenSequence_0/posembed_input", "positions", unbatched),
    rule("ToTokenSequence_0/embedding/kernel", "patch_embed/projection/kernel", scenic_patches),
    rule("ToTokenSequence_0/embedding/bias", "patch_embed/projection/bias"),
)

SCENIC_VISION: tuple[Row, ...] = (
    *prefixed((*SCENIC_TOKENS, *SCENIC_BLOCKS), source="encoder/"),
    rule("encoder/transformer/encoder_norm/(?P<part>scale|bias)", r"norm/\g<part>"),
    Fill("cls_position", np.zeros),
    Fill("blocks/ls[12]", np.ones),
)

SCENIC_TEXT: tuple[Row, ...] = (
    rule("token_emb/emb_var", "token_embedding"),
    *SCENIC_BLOCKS,
    rule("(?:transformer/)?text_encoder_norm/(?P<part>scale|bias)", r"norm/\g<part>"),
    drop("temperature_contrastive"),
)

PYTORCH: tuple[Row, ...] = (*prefixed(VISION, target="vision/"), *prefixed(TEXT, target="text/"))

SCENIC: tuple[Row, ...] = (*prefixed(SCENIC_VISION, target="vision/"), *prefixed(SCENIC_TEXT, target="text/"))
