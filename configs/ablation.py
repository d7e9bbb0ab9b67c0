"""The paper's ablation at nano size on painted scenes: the whole method, and without each of its parts.

    make ablation       (or one variant: dinov3seg train --config ablation:no_late)

It is the quick start's recipe, shortened.
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
    "local_text": {"model.correlation": "local"},
    "global_text": {"model.correlation": "global"},
    "no_spe": {"model.spe": "none"},
    "logits_fusion": {"inference.fusion": "logits"},  # this one and the next differ in inference alone
    "no_windows": {"inference.mode": "whole"},
}


def get_config(variant: str = "full") -> ConfigDict:
    """One of `VARIANTS`."""
    if variant not in VARIANTS:
        raise UserError(f"there is no variant '{variant}'; there are {', '.join(VARIANTS)}.")
    config = default_config()
    config.workdir = f"runs/ablation/{variant}"
    config.model = to_config_dict(presets.NANO)

    config.data.train.view = 96  # of scenes of 160 pixels
    config.data.eval.size = 100
    config.data.crop_size = 96
    config.data.short_side = (96, 96)
    config.data.color_jitter = False  # it would turn a red ball into an orange one

    config.train.alignment_steps = 1500  # in place of dinov3.txt's pre-training
    config.train.steps = 200
    config.train.hardest_classes = 8
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.beta2 = 0.99
    config.train.warmup_steps = 50
    config.train.weight_decay = 1e-2
    config.train.clip_norm = 1.0
    config.train.finetune = "none"  # of the towers, once they are aligned
    config.train.checkpoint_every = 500

    # The paper's 640, 384 and 128 in proportion.
    config.inference.image_size = 160
    config.inference.window = 96
    config.inference.stride = 32
    config.update_from_flattened_dict(VARIANTS[variant])
    return config
