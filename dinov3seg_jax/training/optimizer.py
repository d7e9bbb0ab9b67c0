"""AdamW with a cosine schedule and a rate of its own for the towers (§6)."""

import re

import optax

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.training.finetune import TOWERS

DECAYED = ("kernel", "token_embedding")


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to 0 at the last step."""
    if config.warmup_steps == 0:
        return optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup_steps, config.steps - 1), config.steps
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Gradient clipping by global norm, AdamW with decay on matrices only, and the towers' lower rate."""

    def is_tower(parameters: dict) -> dict:
        return {name: re.match(TOWERS, name) is not None for name in parameters}

    def is_decayed(parameters: dict) -> dict:
        return {name: name.rsplit("/", 1)[-1] in DECAYED for name in parameters}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config), weight_decay=config.weight_decay, mask=is_decayed),
        optax.masked(optax.scale(config.encoder_lr_scale), is_tower),
    )
