"""One training step as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from dinov3seg_jax.config import Config
from dinov3seg_jax.models.correlation import correlate
from dinov3seg_jax.models.parameters import Parameters, bind
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.losses import alignment_loss, named_labels, sigmoid_cross_entropy


class Batch(NamedTuple):
    """What one step trains on."""

    image: UInt8[Array, "b height width 3"]
    label: Int[Array, "b height width"]  # index into the image's row of class_ids, or -1
    class_ids: Int[Array, "b k"]  # index into the names


class TrainState(NamedTuple):
    """What changes from step to step."""

    step: Int[Array, ""]
    trainable: Parameters
    optimizer: Any


Step = Callable[[TrainState, Parameters, Int[Array, "n length"], Batch], tuple[TrainState, dict[str, Array]]]


def make_loss(config: Config, graph: nnx.GraphDef) -> Callable[..., tuple[Float[Array, ""], dict[str, Array]]]:
    """Return loss(trainable, frozen, step, names, batch) -> (loss, its parts); `names` are rows of token ids."""
    options = config.train

    def loss(
        trainable: Parameters,
        frozen: Parameters,
        step: Int[Array, ""],
        names: Int[Array, "n length"],
        batch: Batch,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        model = bind(graph, join(trainable, frozen))
        text = model.encode_text(names)
        images = batch.image.astype(jnp.float32) / 255

        def align(patches: Float[Array, "b h w d"]) -> Float[Array, ""]:
            if not options.alignment_weight:
                return jnp.zeros(())
            # Against every name, not only the image's own list: a correlation costs next to nothing.
            correlation = correlate(patches, text[None], config.model.correlation)
            label = named_labels(batch.label, batch.class_ids)
            return alignment_loss(correlation, label, model.text.logit_scale[0])

        def towers_alone() -> dict[str, Array]:
            return {"mask_loss": jnp.zeros(()), "alignment_loss": align(model.encode_patches(images).patches)}

        def everything() -> dict[str, Array]:
            output = model(images, text[batch.class_ids])
            mask_loss = sigmoid_cross_entropy(output.logits, batch.label)
            return {"mask_loss": mask_loss, "alignment_loss": align(output.refined)}

        if options.alignment_steps:
            parts = jax.lax.cond(step < options.alignment_steps, towers_alone, everything)
        else:
            parts = everything()
        return parts["mask_loss"] + options.alignment_weight * parts["alignment_loss"], parts

    return loss


def make_train_step(config: Config, graph: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Step:
    """Return step(state, frozen, names, batch) -> (next state, metrics)."""
    gradient = jax.value_and_grad(make_loss(config, graph), has_aux=True)

    def step(
        state: TrainState, frozen: Parameters, names: Int[Array, "n length"], batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        (total, parts), gradients = gradient(state.trainable, frozen, state.step, names, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": total, **parts, "gradient_norm": optax.global_norm(gradients)}
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    return step
