"""One training step as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import Config
from dinov3seg_jax.models.correlation import correlate
from dinov3seg_jax.models.parameters import Parameters, bind
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.linear_probe import make_linear_loss
from dinov3seg_jax.training.losses import alignment_loss, named_labels, sigmoid_cross_entropy

CHANCE = 0.5  # what chance can add to a class's cosine when the hardest classes are chosen


class Batch(NamedTuple):
    """What one step trains on: arrays, or their descriptions, or their shardings."""

    image: Any  # uint8 [b, height, width, 3]
    label: Any  # int32 [b, height, width], index into the image's row of class_ids, or -1
    class_ids: Any  # int32 [b, k], index into the names


class TrainState(NamedTuple):
    """What changes from step to step: arrays, or their descriptions, or their shardings."""

    step: Any  # int32 []
    trainable: dict[str, Any]  # by parameter name
    optimizer: Any


Step = Callable[[TrainState, Parameters, Int[Array, "n length"], Batch], tuple[TrainState, dict[str, Array]]]


def make_loss(config: Config, graph: nnx.GraphDef) -> Callable[..., Float[Array, ""]]:
    """Return loss(trainable, frozen, step, names, batch) for `config.train.objective`; `names` are token ids."""
    options = config.train

    def loss(
        trainable: Parameters,
        frozen: Parameters,
        step: Int[Array, ""],
        names: Int[Array, "n length"],
        batch: Batch,
    ) -> Float[Array, ""]:
        model = bind(graph, join(trainable, frozen))
        text = model.encode_text(names)
        images = batch.image.astype(jnp.float32) / 255
        if options.objective == "alignment":
            correlation = correlate(model.encode_patches(images).patches, text[None], config.model.correlation)
            return alignment_loss(
                correlation, named_labels(batch.label, batch.class_ids), options.alignment_temperature
            )
        features = model.encode_image(images)
        refined = model.refine_early(images, features.patches)
        # With every name, not only the image's own list: a correlation costs next to nothing.
        correlation = correlate(refined, text[None], config.model.correlation)
        class_ids, label = batch.class_ids, batch.label
        if options.hardest_classes:
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            class_ids, label = choose_hardest(key, correlation, class_ids, label, options.hardest_classes)
        own = jnp.take_along_axis(correlation, class_ids[..., None, None, None], axis=1)
        guidance = model.project_guidance(features.prior, refined.shape[1], refined.shape[2])
        return sigmoid_cross_entropy(model.refine_late_and_decode(own, guidance, text[class_ids]), label)

    return loss


def choose_hardest(
    key: Array,
    correlation: Float[Array, "b n h w c"],
    class_ids: Int[Array, "b k"],
    label: Int[Array, "b height width"],
    count: int,
) -> tuple[Int[Array, "b count"], Int[Array, "b height width"]]:
    """Shorten each image's class list to the classes that matter most to its masks [ours].

    The classes that are present come first, then those whose names the image resembles most, with some chance added so
    that easy ones are met too. Pixels of a class that finds no place are ignored (-1).

    Args:
        key: for the chance.
        correlation: with all n names.
        class_ids, label: as in `Batch`.
        count: length of the new lists, or k if that is shorter.
    """
    b, k = class_ids.shape
    count = min(count, k)
    rows = jnp.arange(b)[:, None]
    resemblance = jnp.take_along_axis(correlation.max(axis=(2, 3, 4)), class_ids, axis=1)
    flat = label.reshape(b, -1)
    present = jnp.zeros((b, k + 1)).at[rows, flat].set(1.0)[:, :k]  # -1 falls into the last column
    score = jax.lax.stop_gradient(resemblance) + CHANCE * jax.random.uniform(key, (b, k)) + 4.0 * present
    _, kept = jax.lax.top_k(score, count)
    position = jnp.full((b, k), -1).at[rows, kept].set(jnp.arange(count))
    shortened = jnp.where(flat >= 0, jnp.take_along_axis(position, jnp.maximum(flat, 0), axis=1), -1)
    return jnp.take_along_axis(class_ids, kept, axis=1), shortened.reshape(label.shape)


def make_train_step(config: Config, graph: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Step:
    """Return step(state, frozen, names, batch) -> (next state, metrics)."""
    if config.model.linear.classes:
        loss_and_statistics = make_linear_loss(config, graph)
    else:
        plain = make_loss(config, graph)

        def loss_and_statistics(*arguments: Any) -> tuple[Array, Parameters]:
            return plain(*arguments), {}

    value_and_gradient = jax.value_and_grad(loss_and_statistics, has_aux=True)

    def step(
        state: TrainState, frozen: Parameters, names: Int[Array, "n length"], batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        (loss, statistics), gradients = value_and_gradient(state.trainable, frozen, state.step, names, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates) | statistics
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    return step
