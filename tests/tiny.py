"""A whole model with the real tokenizer's vocabulary that compiles in seconds: what commands and runs are tested with.

`tests/models/tiny.py` has a smaller vocabulary and every part; it is for tests of the modules alone.
"""

from dinov3seg_jax.config import (
    DecoderConfig,
    EarlyRefinementConfig,
    LateRefinementConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
)

MODEL = ModelConfig(
    vision=VisionConfig(dim=32, depth=1, heads=2, layerscale_init=1.0, head_blocks=0),
    text=TextConfig(dim=32, depth=1, heads=2),
    early=EarlyRefinementConfig(enabled=False),
    spe="vision",
    spe_dims=(16, 16),
    late=LateRefinementConfig(layers=1, dim=16, heads=2, window=2),
    decoder=DecoderConfig(dims=(16, 16), guidance_dims=(8, 8)),
)
