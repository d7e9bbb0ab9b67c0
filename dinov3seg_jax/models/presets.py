"""Named model sizes."""

import dataclasses

from dinov3seg_jax.config import (
    DecoderConfig,
    EarlyRefinementConfig,
    LateRefinementConfig,
    ModelConfig,
    SamConfig,
    TextConfig,
    VisionConfig,
)

# DINOv3's released backbones (its specification, section 2).
VISION = {
    "vits16": VisionConfig(dim=384, depth=12, heads=6),
    "vits16plus": VisionConfig(dim=384, depth=12, heads=6, ffn="swiglu", ffn_ratio=6.0),
    "vitb16": VisionConfig(dim=768, depth=12, heads=12),
    "vitl16": VisionConfig(dim=1024, depth=24, heads=16),
    "vitl16plus": VisionConfig(dim=1024, depth=24, heads=16, ffn="swiglu", ffn_ratio=6.0),
    "vith16plus": VisionConfig(dim=1280, depth=32, heads=20, ffn="swiglu", ffn_ratio=6.0),
    "vit7b16": VisionConfig(dim=4096, depth=40, heads=32, ffn="swiglu", ffn_ratio=3.0, ffn_align=64, qkv_bias=False),
}

# OpenAI's CLIP, as CAT-Seg takes it (its specification, section 1).
CLIP_VISION = {
    "clip_vitb16": VisionConfig(
        dim=768, depth=12, heads=12, patch_size=16, grid=14, outputs=512, head_blocks=0, storage_tokens=0
    ),
    "clip_vitl14_336": VisionConfig(
        dim=1024, depth=24, heads=16, patch_size=14, grid=24, outputs=768, head_blocks=0, storage_tokens=0
    ),
}
CLIP_TEXT = {
    "clip_vitb16": TextConfig(dim=512, depth=12, heads=8),
    "clip_vitl14_336": TextConfig(dim=768, depth=12, heads=12),
}

# TIPSv2's released towers (its specification, section 2).
TIPS_VISION = {
    name: VisionConfig(
        dim=dim, depth=depth, heads=heads, patch_size=14, storage_tokens=0, head_blocks=0, layerscale_init=1.0, **ffn
    )
    for name, dim, depth, heads, ffn in (
        ("tipsv2_b14", 768, 12, 12, {}),
        ("tipsv2_l14", 1024, 24, 16, {}),
        ("tipsv2_so400m14", 1152, 27, 16, {"ffn_ratio": 4304 / 1152}),
        ("tipsv2_g14", 1536, 40, 24, {"ffn": "swiglu"}),
    )
}
TIPS_TEXT = {
    name: TextConfig(
        dim=vision.dim,
        depth=27 if name == "tipsv2_so400m14" else 12,
        heads=vision.heads,
        ffn_ratio=vision.ffn_ratio,
        vocab_size=32000,
        context_length=64,
    )
    for name, vision in TIPS_VISION.items()
}

SAM = {
    "sam_vit_b": SamConfig(dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "sam_vit_l": SamConfig(),
    "sam_vit_h": SamConfig(dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
}

# What AnyUp's released weights are for; all of it is set, or `init_from` refuses them.
ANYUP = EarlyRefinementConfig(unification="official", locality=0.0)

NANO = ModelConfig(
    vision=VisionConfig(dim=64, depth=3, heads=4, layerscale_init=1.0, head_blocks=1),
    text=TextConfig(dim=48, depth=1, heads=4, ffn_ratio=1.0),  # too small to learn phrases by heart
    sam=SamConfig(dim=64, depth=3, heads=4, window=3, global_blocks=(2,), neck_dim=32, image_size=96),
    early=EarlyRefinementConfig(dim=8, image_stride=4),
    spe="vision",
    spe_dims=(32, 16),
    late=LateRefinementConfig(dim=24, heads=2, window=6),
    decoder=DecoderConfig(dims=(16, 8), guidance_dims=(8, 4), correlation_skip=True),
)

CATSEG_L = ModelConfig(
    towers="clip",
    vision=CLIP_VISION["clip_vitl14_336"],
    text=CLIP_TEXT["clip_vitl14_336"],
    early=EarlyRefinementConfig(enabled=False),
    spe="vision",
    late=LateRefinementConfig(doubled_residual=True, training_pooling=2, pad_classes=256, max_classes=256),
)

CATSEG_B = dataclasses.replace(CATSEG_L, vision=CLIP_VISION["clip_vitb16"], text=CLIP_TEXT["clip_vitb16"])

MODELS = {"nano": NANO, "paper": ModelConfig()}


def with_sam_nano(model: ModelConfig = NANO) -> ModelConfig:
    """The nano model with a nano SAM encoder in place of the vision tower's maps."""
    return dataclasses.replace(model, spe="sam")
