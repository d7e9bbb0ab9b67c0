"""The paper's ablation at nano size on cluttered scenes: the whole method, and without each of its parts.

    make ablation       (or one variant: dinov3seg train --config ablation:no_late)

The towers are made as the paper's were: the vision backbone learns from pictures alone, its head and the text tower
from captions, and no mask is seen. Then they are frozen, and the rest trains on masks. What they do alone is the
baseline, `zero_shot`.

Patches are of 8 pixels: with 16, a thing is two or three patches wide, and refinement has nothing to gather.
"""

from typing import Any

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config, to_config_dict
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models import presets

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_early": {"model.early.enabled": False},
    "no_late": {"model.late.enabled": False},
    "one_layer": {"model.late.layers": 1},
    "no_spatial": {"model.late.without": "spatial"},
    "no_classes": {"model.late.without": "classes"},
    "no_spe": {"model.spe": "none"},  # the whole method takes the vision tower's maps: there is no SAM of this size
    "local_text": {"model.correlation": "local"},
    "global_text": {"model.correlation": "global"},
    "logits_fusion": {"inference.fusion": "logits"},  # this one and the next differ in inference alone
    "no_windows": {"inference.mode": "whole"},
}
CLUTTER = 0.4


def get_config(variant: str = "full") -> ConfigDict:
    """One of `VARIANTS`."""
    if variant not in VARIANTS:
        raise UserError(f"there is no variant '{variant}'; there are {', '.join(VARIANTS)}.")
    config = default_config()
    config.workdir = f"runs/ablation/{variant}"
    config.model = to_config_dict(presets.NANO)
    config.model.vision.patch_size = 8

    config.data.train.view = 96  # of scenes of 160 pixels
    config.data.train.clutter = CLUTTER
    config.data.eval.clutter = CLUTTER
    config.data.eval.size = 100
    config.data.crop_size = 96
    config.data.short_side = (96, 96)
    config.data.color_jitter = False  # it would turn a red ball into an orange one

    config.train.alignment_by = "captions"  # in place of dinov3.txt's pre-training
    config.train.alignment_steps = 2500
    config.train.alignment_batch = 48
    config.train.backbone_steps = 700  # in place of DINOv3's
    config.train.steps = 1000
    config.train.hardest_classes = 8
    config.train.batch_size = 8
    config.train.learning_rate = 2e-3
    config.train.beta2 = 0.99
    config.train.warmup_steps = 50
    config.train.weight_decay = 1e-2
    config.train.clip_norm = 1.0
    config.train.finetune = "none"  # of the towers, once they are aligned
    config.train.checkpoint_every = 1000

    # The paper's 640, 384 and 128 in proportion.
    config.inference.image_size = 160
    config.inference.window = 96
    config.inference.stride = 32
    config.zero_shot.patch_features = "head"  # what captions are aligned with
    config.zero_shot.mode = "whole"
    config.zero_shot.short_side = 160
    config.zero_shot.templates = "paper"
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
