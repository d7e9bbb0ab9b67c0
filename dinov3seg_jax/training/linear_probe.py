"""Training of a linear head on a frozen backbone (DINOv3's specification, section 12.4)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import bind
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.losses import named_labels, upsample_logits

FIRST_RATE = 1e-6  # of the warm-up, as a share of the full rate
RUNNING = ("linear/norm/mean", "linear/norm/var")  # statistics, which no gradient moves


def check_linear(config: Config, classes: int) -> None:
    """Refuse options of the whole method, which a linear head does not have.

    Raises:
        UserError: it names the option, or the number of the data set's classes.
    """
    if classes != config.model.linear.classes:
        raise UserError(
            f"model.linear.classes is {config.model.linear.classes}, but data set '{config.data.train.name}' has "
            f"{classes} classes; set --config.model.linear.classes={classes}."
        )
    plain_values = {"objective": "masks", "alignment_steps": 0, "hardest_classes": 0, "accumulate": 1, "view_size": 0}
    for option, plain in plain_values.items():
        if getattr(config.train, option) != plain:
            raise UserError(f"train.{option} is not for a linear head; set --config.train.{option}={plain}.")


def make_linear_loss(config: Config, graph: nnx.GraphDef) -> Callable[..., tuple[Float[Array, ""], Parameters]]:
    """Return loss(trainable, frozen, step, batch) -> (loss, running statistics)."""

    def loss(
        trainable: Parameters, frozen: Parameters, step: Int[Array, ""], batch: Any
    ) -> tuple[Float[Array, ""], Parameters]:
        model = bind(graph, join(trainable, frozen))
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        logits = model.train_logits(key, batch.image.astype(jnp.float32) / 255)
        norm = model.linear.norm
        statistics = dict(zip(RUNNING, (norm.mean[...], norm.var[...]), strict=True))
        return pixel_cross_entropy(logits, named_labels(batch.label, batch.class_ids)), statistics

    return loss


def pixel_cross_entropy(logits: Float[Array, "b t h w"], label: Int[Array, "b height width"]) -> Float[Array, ""]:
    """Softmax cross-entropy at the label's size, summed and divided by the number of all pixels.

    Args:
        logits: at any resolution.
        label: index into the t classes, or -1 where the pixel is ignored: it adds nothing to the sum but counts.
    """
    height, width = label.shape[1:]
    resized = upsample_logits(logits.astype(jnp.float32), height, width)
    losses = optax.softmax_cross_entropy_with_integer_labels(resized, jnp.maximum(label, 0), axis=1)
    return jnp.where(label >= 0, losses, 0).mean()


def one_cycle(rate: float, steps: int, warmup: int) -> optax.Schedule:
    """DINOv3's schedule: a line upwards times one downwards for `warmup` steps, then a cosine to 0."""

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        rising = (1 - (1 - step / max(warmup, 1)) * (1 - FIRST_RATE)) * (1 - step / steps)
        falling = (1 + jnp.cos(jnp.pi * (step + 1) / steps)) / 2
        return rate * jnp.where(step < warmup, rising, falling)

    return schedule
