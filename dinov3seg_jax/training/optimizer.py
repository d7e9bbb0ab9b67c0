"""AdamW with a cosine schedule and a rate of its own for the towers (§6)."""

import re

import optax

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.models.low_rank import is_update
from dinov3seg_jax.training.average import average_weights
from dinov3seg_jax.training.finetune import TOWERS
from dinov3seg_jax.training.linear_probe import one_cycle


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to 0 at the last step; or `linear_probe.one_cycle`."""
    if config.schedule == "one_cycle":
        return one_cycle(config.learning_rate, config.steps, config.warmup_steps)
    warmup = min(config.warmup_steps, config.steps - 1)
    if not warmup:
        return optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Gradient clipping by global norm, AdamW with decay on matrices only (or on all), and the towers' own rates.

    With `ema_decay` also the moving average of what comes of it (see `average`).
    """

    def is_tower(parameters: dict) -> dict:
        return {name: re.match(TOWERS, name) is not None and not is_update(name) for name in parameters}

    def is_lora(parameters: dict) -> dict:
        return {name: is_update(name) for name in parameters}

    def is_decayed(parameters: dict) -> dict:
        return {name: config.decay_all or name.endswith("/kernel") for name in parameters}

    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config), b2=config.beta2, weight_decay=config.weight_decay, mask=is_decayed),
        optax.masked(optax.scale(config.encoder_lr_scale), is_tower),
    ]
    if config.finetune == "lora":
        parts.append(optax.masked(optax.scale(config.lora_lr_scale), is_lora))
    return optax.chain(*parts, *([average_weights(config.ema_decay)] if config.ema_decay else []))
