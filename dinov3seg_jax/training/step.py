"""One training step as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import Config
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.graph import bind
from dinov3seg_jax.models.mesh import over_batch
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.training.agreement import count_agreement
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.gathering import Shardings, gathered
from dinov3seg_jax.training.linear_probe import make_linear_loss
from dinov3seg_jax.training.losses import alignment_loss, named_labels, sample_patches, sigmoid_cross_entropy
from dinov3seg_jax.training.optimizer import learning_rate_schedule
from dinov3seg_jax.training.pretraining import caption_loss, recognition_loss

TEXT = "text/"  # parameters of the text tower
CHANCE = 0.5  # what chance can add to a class's cosine when the hardest classes are chosen


class Batch(NamedTuple):
    """What one step trains on: arrays, or their descriptions, or their shardings."""

    image: Any  # uint8 [b, height, width, 3]
    label: Any  # int32 [b, height, width], index into the image's row of class_ids, or -1
    class_ids: Any  # int32 [b, k], index into the names
    weights: Any = None  # float32 [b, k], what each class's part of the loss counts; None: 1
    caption: Any = None  # int32 [b, length], token ids of a caption of the image; None: there is none


class TrainState(NamedTuple):
    """What changes from step to step: arrays, or their descriptions, or their shardings."""

    step: Any  # int32 []
    trainable: dict[str, Any]  # by parameter name
    optimizer: Any


class Aside(NamedTuple):
    """What a loss tells beside its value."""

    weight: Any  # how many labelled pixels (patches or images, by the objective) it is the mean of
    counts: Any = None  # int32 [3, n]: see `count_agreement`; None: the objective has none
    statistics: Any = None  # running ones, by parameter name; None: the model has none


Gradient = tuple[Float[Array, ""], Aside, Parameters]
Names = Int[Array, "n length"] | Float[Array, "n d2"]  # token ids, or their embeddings
Step = Callable[[TrainState, Parameters, Names, Batch], tuple[TrainState, dict[str, Array]]]


def make_loss(config: Config, graph: nnx.GraphDef) -> Callable[..., tuple[Float[Array, ""], Aside]]:
    """Return loss(trainable, frozen, text, step, batch) for `config.train.objective`; `text` is of all names."""
    options = config.train

    def loss(
        trainable: Parameters,
        frozen: Parameters,
        text: Float[Array, "n d2"],
        step: Int[Array, ""],
        batch: Batch,
    ) -> tuple[Float[Array, ""], Aside]:
        model = bind(graph, join(trainable, frozen))
        images = seen(batch.image, options.view_size)
        if options.objective == "captions":
            return caption_loss(model, images, batch.caption), Aside(jnp.asarray(len(images)))
        if options.objective == "patches":
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            return recognition_loss(model, images, key), Aside(jnp.asarray(len(images)))
        if options.objective == "alignment":
            correlation = model.correlate(model.encode_patches(images).patches, text[None])
            label = named_labels(batch.label, batch.class_ids)
            labelled = (sample_patches(label, *correlation.shape[2:4]) >= 0).any(axis=(2, 4))
            return alignment_loss(correlation, label, options.alignment_temperature), Aside(labelled.sum())
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
        counts = count_agreement(logits, label, class_ids, len(text))
        if options.negatives == "unbiased":
            unbiased = for_all_names(label, class_ids.shape[1], len(text))
            weights = unbiased if weights is None else weights * unbiased
        return sigmoid_cross_entropy(logits, label, weights, ignored_as_negative=negative), Aside(weight, counts)

    return loss


def seen(image: Int[Array, "b h w 3"], view_size: int) -> Float[Array, "b height width 3"]:
    """Bytes as the model takes them, brought to a side of `view_size` pixels; 0 leaves their size."""
    pixels = image.astype(jnp.float32) / 255
    return resize_linear(pixels, view_size, view_size) if view_size else pixels


def present_classes(label: Int[Array, "b height width"], count: int) -> Float[Array, "b count"]:
    """1 for each class of each image's list that has a pixel, else 0."""
    return (label[:, None] == jnp.arange(count)[:, None, None]).any(axis=(2, 3)).astype(jnp.float32)


def for_all_names(label: Int[Array, "b height width"], drawn: int, names: int) -> Float[Array, "b drawn"]:
    """Weights of a drawn class list with which the loss is, in the mean over draws, that over all names [ours].

    A list of d has the p classes present, and d - p others drawn evenly from n - p. One that is present counts once,
    one of the others for (n - p) / (d - p); the loss divides by d, and d / n makes that n. Exact where d > p, and for
    logits that do not depend on the rest of the list, which the class blocks make only nearly so.

    Args:
        label: positions in the lists, -1 where ignored.
        drawn: d, the length of the lists.
        names: n.
    """
    present = present_classes(label, drawn)
    p = present.sum(axis=1, keepdims=True)
    others = (names - p) / jnp.maximum(drawn - p, 1)
    return jnp.where(present > 0, 1.0, others) * (drawn / names)


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
    flat, present = label.reshape(b, -1), present_classes(label, k)
    score = jax.lax.stop_gradient(resemblance) + CHANCE * jax.random.uniform(key, (b, k)) + 4.0 * present
    _, kept = jax.lax.top_k(score, count)
    position = jnp.full((b, k), -1).at[rows, kept].set(jnp.arange(count))
    shortened = jnp.where(flat >= 0, jnp.take_along_axis(position, jnp.maximum(flat, 0), axis=1), -1)
    return jnp.take_along_axis(class_ids, kept, axis=1), shortened.reshape(label.shape)


def make_gradient(config: Config, graph: nnx.GraphDef, shardings: Shardings | None = None) -> Callable[..., Gradient]:
    """Return gradient(trainable, frozen, step, names, batch) -> (loss, what it tells beside it, gradients).

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

        def loss_of(
            trainable: Parameters, frozen: Parameters, text: Array, step: Array, batch: Batch
        ) -> tuple[Array, Aside]:
            loss, statistics = linear_loss(trainable, frozen, step, batch)
            return loss, Aside(jnp.ones(()), statistics=statistics)
    else:
        loss_of = make_loss(config, graph)

    def together(trainable: Parameters) -> Parameters:
        if shardings is None or not config.fsdp_gather_once:
            return trainable
        return gathered(trainable, shardings, config.model.dtype)

    parts = config.train.accumulate

    def place(gradients: Parameters) -> Parameters:
        return gradients if shardings is None else jax.lax.with_sharding_constraint(gradients, shardings)

    def of_the_rest(
        trainable: Parameters, frozen: Parameters, text: Array, step: Int[Array, ""], batch: Batch, text_too: bool
    ) -> tuple[Array, Aside, tuple[Parameters, Array | None]]:
        """Loss, what it tells, and gradients: of what trains, by way of all but the text tower, and of `text`."""
        of_both = jax.value_and_grad(
            lambda trainable, *others: loss_of(together(trainable), *others), (0, 2) if text_too else (0,), has_aux=True
        )

        def differentiate(step: Array, part: Batch) -> tuple[Array, Aside, tuple[Parameters, Array | None]]:
            (loss, aside), found = of_both(trainable, frozen, text, step, part)
            return loss, aside, (place(found[0]), found[1] if text_too else None)

        if parts == 1:
            return differentiate(step, batch)

        def add(total: tuple, numbered: tuple[Array, Batch]) -> tuple[tuple, Any]:
            number, part = numbered
            loss, aside, gradients = differentiate(step * parts + number, part)
            weight = aside.weight.astype(jnp.float32)
            summed = jax.tree.map(lambda sum, new: sum + weight * new, total[:2], (loss, gradients))
            return (*summed, total[2] + weight), aside.counts

        no_gradients = (place(jax.tree.map(jnp.zeros_like, trainable)), jnp.zeros(text.shape) if text_too else None)
        nothing = (jnp.zeros(()), no_gradients, jnp.zeros(()))
        (loss, gradients, weight), counts = jax.lax.scan(add, nothing, (jnp.arange(parts), _cut(batch, parts)))
        loss, gradients = jax.tree.map(lambda sum: sum / jnp.maximum(weight, 1), (loss, gradients))
        return loss, Aside(weight, jax.tree.map(lambda count: count.sum(axis=0), counts)), gradients

    def gradient(
        trainable: Parameters, frozen: Parameters, step: Int[Array, ""], names: Names, batch: Batch
    ) -> Gradient:
        of_text = {name: value for name, value in trainable.items() if name.startswith(TEXT)}
        nameless = config.model.linear.classes or config.train.objective in ("patches", "captions")
        if nameless or jnp.issubdtype(names.dtype, jnp.floating):
            loss, aside, (gradients, _) = of_the_rest(trainable, frozen, names, step, batch, False)
            return loss, aside, gradients

        def embed(of_text: Parameters) -> Float[Array, "n d2"]:
            return bind(graph, join(together(trainable | of_text), frozen)).encode_text(names)

        text, pull_back = jax.vjp(embed, of_text)
        loss, aside, (gradients, pulled) = of_the_rest(trainable, frozen, text, step, batch, bool(of_text))
        if pulled is not None:
            (by_text,) = pull_back(pulled.astype(text.dtype))
            gradients |= place(gradients | {name: gradients[name] + by_text[name] for name in of_text})
        return loss, aside, gradients

    return gradient


def _cut(batch: Batch, parts: int) -> Batch:
    """[b, ...] to [parts, b / parts, ...], every part with an equal share of each device's examples."""
    return jax.tree.map(
        lambda array: over_batch(array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1), axis=1), batch
    )


def make_train_step(
    config: Config, graph: nnx.GraphDef, optimizer: optax.GradientTransformation, shardings: Shardings | None = None
) -> Step:
    """Return step(state, frozen, names, batch) -> (next state, metrics); `shardings` as for `make_gradient`."""
    gradient, rate = make_gradient(config, graph, shardings), learning_rate_schedule(config.train)

    def step(state: TrainState, frozen: Parameters, names: Names, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        loss, aside, gradients = gradient(state.trainable, frozen, state.step, names, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates) | (aside.statistics or {})
        metrics = {
            "loss": loss,
            "learning_rate": jnp.asarray(rate(state.step), jnp.float32),
            **_norms("gradient_norm", gradients),
            **_norms("update_norm", updates),
        }
        if aside.counts is not None:
            metrics["counts"] = aside.counts
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    return step


def _norms(title: str, changes: Parameters) -> dict[str, Float[Array, ""]]:
    """The norm of all of them, and as "title/part" of those of each part of the model: vision, text, early, ..."""
    parts = sorted({name.split("/")[0] for name in changes})
    of_part = {part: [value for name, value in changes.items() if name.split("/")[0] == part] for part in parts}
    return {title: optax.tree.norm(changes)} | {
        f"{title}/{part}": optax.tree.norm(values) for part, values in of_part.items()
    }
