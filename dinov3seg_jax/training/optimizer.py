"""AdamW with a cosine schedule and rates of their own for the encoders (§6)."""

import re

import jax
import optax

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.models.low_rank import is_update
from dinov3seg_jax.training.average import average_weights
from dinov3seg_jax.training.finetune import TOWERS
from dinov3seg_jax.training.linear_probe import one_cycle

SPE = "sam/"


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to 0 at the last step; or `linear_probe.one_cycle`."""
    if config.schedule == "one_cycle":
        return one_cycle(config.learning_rate, config.steps, config.warmup_steps)
    warmup = min(config.warmup_steps, config.steps - 1)
    if not warmup:
        return optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Gradient clipping by global norm, AdamW, and the lower rates of the encoders, which its weight decay follows.

    With `ema_decay` also the moving average of what comes of it (see `average`).
    """

    def is_encoder(parameters: dict) -> dict:
        encoders = rf"{TOWERS}|{SPE}"
        return {name: re.match(encoders, name) is not None and not is_update(name) for name in parameters}

    def slower(updates: dict, parameters: dict | None) -> dict:
        scales = {name: config.spe_lr_scale if name.startswith(SPE) else config.encoder_lr_scale for name in updates}
        return {name: jax.tree.map(lambda x, by=scales[name]: by * x, update) for name, update in updates.items()}

    def is_lora(parameters: dict) -> dict:
        return {name: is_update(name) for name in parameters}

    def is_decayed(parameters: dict) -> dict:
        return {name: decays(name, config) for name in parameters}

    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate_schedule(config), b2=config.beta2, weight_decay=config.weight_decay, mask=is_decayed),
        optax.masked(optax.stateless(slower), is_encoder),
    ]
    if config.finetune == "lora":
        parts.append(optax.masked(optax.scale(config.lora_lr_scale), is_lora))
    return optax.chain(*parts, *([average_weights(config.ema_decay)] if config.ema_decay else []))


def decays(name: str, config: TrainConfig) -> bool:
    """Matrices do; with `decay_biases` all but the parameters of norms; with `decay_all` these too."""
    of_a_norm = re.fullmatch(r".*norm[^/]*/(scale|bias)", name) is not None
    return config.decay_all or name.endswith("/kernel") or (config.decay_biases and not of_a_norm)
