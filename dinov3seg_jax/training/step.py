"""One training step as a pure function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import Config
from dinov3seg_jax.models.graph import bind
from dinov3seg_jax.models.mesh import over_batch
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.linear_probe import make_linear_loss
from dinov3seg_jax.training.losses import alignment_loss, named_labels, sample_patches, sigmoid_cross_entropy

TEXT = "text/"  # parameters of the text tower
CHANCE = 0.5  # what chance can add to a class's cosine when the hardest classes are chosen


class Batch(NamedTuple):
    """What one step trains on: arrays, or their descriptions, or their shardings."""

    image: Any  # uint8 [b, height, width, 3]
    label: Any  # int32 [b, height, width], index into the image's row of class_ids, or -1
    class_ids: Any  # int32 [b, k], index into the names
    weights: Any = None  # float32 [b, k], what each class's part of the loss counts; None: 1


class TrainState(NamedTuple):
    """What changes from step to step: arrays, or their descriptions, or their shardings."""

    step: Any  # int32 []
    trainable: dict[str, Any]  # by parameter name
    optimizer: Any


Gradient = tuple[Float[Array, ""], Parameters, Parameters]
Shardings = Mapping[str, jax.sharding.NamedSharding] | None
Names = Int[Array, "n length"] | Float[Array, "n d2"]  # token ids, or their embeddings
Step = Callable[[TrainState, Parameters, Names, Batch], tuple[TrainState, dict[str, Array]]]


def make_loss(config: Config, graph: nnx.GraphDef) -> Callable[..., tuple[Float[Array, ""], Int[Array, ""]]]:
    """Return loss(trainable, frozen, text, step, batch) for `config.train.objective`; `text` is of all names.

    It gives a mean, and how many labelled pixels (patches, for "alignment") it is the mean of.
    """
    options = config.train

    def loss(
        trainable: Parameters,
        frozen: Parameters,
        text: Float[Array, "n d2"],
        step: Int[Array, ""],
        batch: Batch,
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        model = bind(graph, join(trainable, frozen))
        images = batch.image.astype(jnp.float32) / 255
        if options.objective == "alignment":
            correlation = model.correlate(model.encode_patches(images).patches, text[None])
            label = named_labels(batch.label, batch.class_ids)
            labelled = (sample_patches(label, *correlation.shape[2:4]) >= 0).any(axis=(2, 4))
            return alignment_loss(correlation, label, options.alignment_temperature), labelled.sum()
        features = model.encode_image(images)
        refined = model.refine_early(images, features.patches)
        # With every name, not only the image's own list: a correlation costs next to nothing.
        correlation = model.correlate(refined, text[None])
        class_ids, label = batch.class_ids, batch.label
        if options.hardest_classes:
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            class_ids, label = choose_hardest(key, correlation, class_ids, label, options.hardest_classes)
        weights = None if batch.weights is None else _weights_of(class_ids, batch, len(text))
        own = jnp.take_along_axis(correlation, class_ids[..., None, None, None], axis=1)
        guidance = model.project_guidance(features.prior, refined.shape[1], refined.shape[2])
        logits = model.refine_late_and_decode(own, guidance, text[class_ids])
        negative = options.ignored == "negative"
        weight = jnp.asarray(label.size) if negative else (label >= 0).sum()
        return sigmoid_cross_entropy(logits, label, weights, ignored_as_negative=negative), weight

    return loss


def _weights_of(class_ids: Int[Array, "b t"], batch: Batch, names: int) -> Float[Array, "b t"]:
    """The weights of classes that are some of a batch's, in another order."""
    rows = jnp.arange(len(class_ids))[:, None]
    of_name = jnp.zeros((len(class_ids), names)).at[rows, batch.class_ids].set(batch.weights)
    return jnp.take_along_axis(of_name, class_ids, axis=1)


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


def make_gradient(config: Config, graph: nnx.GraphDef, shardings: Shardings = None) -> Callable[..., Gradient]:
    """Return gradient(trainable, frozen, step, names, batch) -> (loss, running statistics, gradients).

    The names are token ids, which are embedded once, however many parts the batch has: what each part says of the
    embeddings is summed, and goes back through the text tower once. Or they are embeddings, which nothing changes.

    Args:
        config: its `train.accumulate` cuts the batch into parts, one after the other. Each part's loss and gradients
            count as much as it has labelled pixels (or patches), which makes them those of the whole batch; only
            `train.hardest_classes` draws anew in each.
        graph: of the model.
        shardings: by name; gradients then lie as their parameters do, so that no device holds all of them.
    """
    if config.model.linear.classes:
        linear_loss = make_linear_loss(config, graph)

        def weighed_loss(
            trainable: Parameters, frozen: Parameters, text: Array, step: Array, batch: Batch
        ) -> tuple[Array, tuple[Array, Parameters]]:
            loss, statistics = linear_loss(trainable, frozen, step, batch)
            return loss, (jnp.ones(()), statistics)
    else:
        plain_loss = make_loss(config, graph)

        def weighed_loss(
            trainable: Parameters, frozen: Parameters, text: Array, step: Array, batch: Batch
        ) -> tuple[Array, tuple[Array, Parameters]]:
            loss, weight = plain_loss(trainable, frozen, text, step, batch)
            return loss, (weight, {})

    parts = config.train.accumulate

    def place(gradients: Parameters) -> Parameters:
        return gradients if shardings is None else jax.lax.with_sharding_constraint(gradients, shardings)

    def of_the_rest(
        trainable: Parameters, frozen: Parameters, text: Array, step: Int[Array, ""], batch: Batch, text_too: bool
    ) -> tuple[Array, Parameters, tuple[Parameters, Array | None]]:
        """Loss, running statistics, and gradients: of what trains, by way of all but the text tower, and of `text`."""
        of_both = jax.value_and_grad(weighed_loss, (0, 2) if text_too else (0,), has_aux=True)

        def differentiate(step: Array, part: Batch) -> tuple[Array, Array, Parameters, tuple[Parameters, Array | None]]:
            (loss, (weight, statistics)), found = of_both(trainable, frozen, text, step, part)
            return loss, weight, statistics, (place(found[0]), found[1] if text_too else None)

        if parts == 1:
            loss, _, statistics, gradients = differentiate(step, batch)
            return loss, statistics, gradients

        def add(total: tuple, numbered: tuple[Array, Batch]) -> tuple[tuple, None]:
            number, part = numbered
            loss, weight, _, gradients = differentiate(step * parts + number, part)
            weight = weight.astype(jnp.float32)
            summed = jax.tree.map(lambda sum, new: sum + weight * new, total[:2], (loss, gradients))
            return (*summed, total[2] + weight), None

        no_gradients = (place(jax.tree.map(jnp.zeros_like, trainable)), jnp.zeros(text.shape) if text_too else None)
        nothing = (jnp.zeros(()), no_gradients, jnp.zeros(()))
        (loss, gradients, weight), _ = jax.lax.scan(add, nothing, (jnp.arange(parts), _cut(batch, parts)))
        loss, gradients = jax.tree.map(lambda sum: sum / jnp.maximum(weight, 1), (loss, gradients))
        return loss, {}, gradients

    def gradient(
        trainable: Parameters, frozen: Parameters, step: Int[Array, ""], names: Names, batch: Batch
    ) -> Gradient:
        of_text = {name: value for name, value in trainable.items() if name.startswith(TEXT)}
        if config.model.linear.classes or jnp.issubdtype(names.dtype, jnp.floating):
            loss, statistics, (gradients, _) = of_the_rest(trainable, frozen, names, step, batch, False)
            return loss, statistics, gradients

        def embed(of_text: Parameters) -> Float[Array, "n d2"]:
            return bind(graph, join(trainable | of_text, frozen)).encode_text(names)

        text, pull_back = jax.vjp(embed, of_text)
        loss, statistics, (gradients, pulled) = of_the_rest(trainable, frozen, text, step, batch, bool(of_text))
        if pulled is not None:
            (by_text,) = pull_back(pulled.astype(text.dtype))
            gradients |= place(gradients | {name: gradients[name] + by_text[name] for name in of_text})
        return loss, statistics, gradients

    return gradient


def _cut(batch: Batch, parts: int) -> Batch:
    """[b, ...] to [parts, b / parts, ...], every part with an equal share of each device's examples."""
    return jax.tree.map(
        lambda array: over_batch(array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1), axis=1), batch
    )


def make_train_step(
    config: Config, graph: nnx.GraphDef, optimizer: optax.GradientTransformation, shardings: Shardings = None
) -> Step:
    """Return step(state, frozen, names, batch) -> (next state, metrics); `shardings` as for `make_gradient`."""
    gradient = make_gradient(config, graph, shardings)

    def step(state: TrainState, frozen: Parameters, names: Names, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        loss, statistics, gradients = gradient(state.trainable, frozen, state.step, names, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates) | statistics
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    return step
