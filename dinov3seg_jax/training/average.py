"""A moving average of the weights that train: smoother than the newest ones, and what a checkpoint hands on (§6)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from dinov3seg_jax.models.parameters import Parameters


class Averaged(NamedTuple):
    """State of `average_weights`."""

    steps: Int[Array, ""]  # so far
    average: dict[str, Any]  # by parameter name


def average_weights(decay: float) -> optax.GradientTransformation:
    """Keep the average of the weights after each step; to be chained last, where updates are final.

    average <- d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)) in step n, counted from 0, so
    that weights from before the first step are soon forgotten.
    """

    def init(parameters: Parameters) -> Averaged:
        # Copies: a step is given both trees to overwrite.
        return Averaged(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, parameters))

    def update(updates: Parameters, state: Averaged, parameters: Parameters) -> tuple[Parameters, Averaged]:
        kept = jnp.minimum(decay, (1 + state.steps) / (10 + state.steps))
        moved = optax.apply_updates(parameters, updates)
        return updates, Averaged(state.steps + 1, optax.incremental_update(moved, state.average, 1 - kept))

    return optax.GradientTransformation(init, update)


def exchange(trainable: Parameters, optimizer: Any) -> tuple[Parameters, Any]:
    """Let weights and their average change places; nothing changes where there is no average. Its own inverse.

    A checkpoint is written so: what it calls parameters is the average, which scoring, prediction and `init_from` then
    use without knowing of it, and the weights that training goes on with lie in the optimiser's state.
    """
    *others, last = optimizer
    if not isinstance(last, Averaged):
        return trainable, optimizer
    return last.average, (*others, last._replace(average=trainable))
