"""AnyUp -> `EarlyRefinement` with `unification = "official"` and `locality = 0`."""

import numpy as np

from dinov3seg_jax.convert.tables.rows import norm
from dinov3seg_jax.convert.tables.rules import Fill, Row, Rule, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import convolution, linear_thirds, pointwise, thirds

RES_BLOCK: tuple[Row, ...] = (
    *norm(r"block\.0", "norm1"),
    rule(r"block\.2\.weight", "conv1/kernel", pointwise),
    *norm(r"block\.3", "norm2"),
    rule(r"block\.5\.weight", "conv2/kernel", pointwise),
    rule(r"shortcut\.weight", "shortcut/kernel", pointwise),
)

ENCODERS = r"(?P<encoder>image_encoder|query_encoder|key_encoder|aggregation)"

RULES: tuple[Row, ...] = (
    rule(rf"{ENCODERS}\.0\.weight", r"\g<encoder>/conv/kernel", convolution),
    *prefixed(RES_BLOCK, source=rf"{ENCODERS}\.(?P<block>[12])\.", target=r"\g<encoder>/block\g<block>/"),
    rule(r"key_features_encoder\.0\.basis", "unify/basis", convolution),
    *prefixed(RES_BLOCK, source=r"key_features_encoder\.(?P<block>[12])\.", target=r"unify_block\g<block>/"),
    rule(r"rope\.freqs", "frequencies"),
    rule(r"cross_decode\.conv2d\.weight", "query_conv/kernel", convolution),
    rule(r"cross_decode\.cross_attn\.norm_q\.weight", "query_norm/scale"),
    rule(r"cross_decode\.cross_attn\.norm_k\.weight", "key_norm/scale"),
    # The value third and the output projection are there but without effect: values are not projected.
    Rule(
        r"cross_decode\.cross_attn\.attention\.in_proj_weight",
        ("query/kernel", "key/kernel"),
        lambda x: linear_thirds(x)[:2],
    ),
    Rule(r"cross_decode\.cross_attn\.attention\.in_proj_bias", ("query/bias", "key/bias"), lambda x: thirds(x)[:2]),
    drop(r"cross_decode\.cross_attn\.attention\.out_proj\.(?:weight|bias)"),
    Fill("locality", lambda shape: np.zeros(shape, np.float32)),
)
