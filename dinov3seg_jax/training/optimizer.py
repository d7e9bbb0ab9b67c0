"""AdamW with a cosine schedule and a rate of its own for the towers (§6)."""

import re

import optax

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.training.finetune import TOWERS

DECAYED = ("kernel", "token_embedding")


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to 0 at the last step; once for the alignment steps and once for the rest."""

    def rise_and_fall(steps: int) -> optax.Schedule:
        warmup = min(config.warmup_steps, steps - 1)
        if not warmup:
            return optax.cosine_decay_schedule(config.learning_rate, steps)
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)

    first = config.alignment_steps
    if not first or first >= config.steps:
        return rise_and_fall(config.steps)
    return optax.join_schedules([rise_and_fall(first), rise_and_fall(config.steps - first)], [first])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Gradient clipping by global norm, AdamW with decay on matrices only, and the towers' lower rate."""

    def is_tower(parameters: dict) -> dict:
        return {name: re.match(TOWERS, name) is not None for name in parameters}

    def is_decayed(parameters: dict) -> dict:
        return {name: name.rsplit("/", 1)[-1] in DECAYED for name in parameters}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config), b2=config.beta2, weight_decay=config.weight_decay, mask=is_decayed),
        optax.masked(optax.scale(config.encoder_lr_scale), is_tower),
    )
