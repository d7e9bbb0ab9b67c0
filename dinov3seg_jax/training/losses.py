"""Losses (§6)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.mesh import (
    BY_CLASS,
    BY_EXAMPLE,
    fill_classes,
    first_class,
    on_each_device,
    on_one_device,
    over_batch,
    shares_classes,
    sum_classes,
)

LOGITS_AT_ONCE = 2**24  # at the labels' size, on a device: 64 MB
SAMPLES_PER_PATCH = 4  # along each side


def upsample_logits(logits: Float[Array, "b t h w"], height: int, width: int) -> Float[Array, "b t height width"]:
    """Bilinear to the size of the labels."""
    return jnp.moveaxis(resize_linear(jnp.moveaxis(logits, 1, 3), height, width), 3, 1)


def sigmoid_cross_entropy(
    logits: Float[Array, "b t h w"],
    label: Int[Array, "b height width"],
    weights: Float[Array, "b t"] | None = None,
    *,
    ignored_as_negative: bool = False,
) -> Float[Array, ""]:
    """Per-class sigmoid cross-entropy, mean over classes and labelled pixels.

    Logits at the labels' size are many: 100 MB a crop of 384 with 171 classes. Where they are, the classes go in
    parts, of which the backward pass keeps nothing but these small logits.

    Args:
        logits: one per class, at any resolution; upsampled to the label's.
        label: index into the t classes, or -1 where the pixel is ignored.
        weights: what each class's part is multiplied by; default 1. The mean is over t all the same.
        ignored_as_negative: CAT-Seg's form: ignored pixels count as "no class" and stay in the mean.
    """
    b, t = logits.shape[:2]
    weights = jnp.ones((b, t), logits.dtype) if weights is None else weights
    if shares_classes():
        sum_up = on_each_device(_sum_over_classes, (BY_CLASS, BY_EXAMPLE, BY_CLASS), BY_EXAMPLE)
        total = sum_up(fill_classes(logits), label, fill_classes(weights))
    else:
        total = _sum_over_classes(logits, label, weights)
    losses = total / t
    return losses.mean() if ignored_as_negative else masked_mean(losses, label >= 0)


def _sum_over_classes(
    logits: Float[Array, "b t h w"], label: Int[Array, "b height width"], weights: Float[Array, "b t"]
) -> Float[Array, "b height width"]:
    """Each pixel's losses of all classes together, of which devices may have some each (see `models.mesh`)."""
    b, t, h, w = logits.shape
    height, width = label.shape[1:]
    label = label - first_class(t)

    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        first, logits, weights = part
        target = jax.nn.one_hot(label - first, logits.shape[1], axis=1)
        losses = optax.sigmoid_binary_cross_entropy(upsample_logits(logits, height, width), target)
        return total + (losses * weights[:, :, None, None]).sum(axis=1), None

    at_once = min(max(LOGITS_AT_ONCE // (on_one_device(b) * height * width), 1), t)
    parts = -(-t // at_once)
    total = over_batch(jnp.zeros((b, height, width), logits.dtype))
    if parts == 1:
        total, _ = add(total, (jnp.zeros((), jnp.int32), logits, weights))
    else:
        at_once = -(-t // parts)
        missing = ((0, 0), (0, parts * at_once - t))  # filled up with classes of no weight
        logits = jnp.pad(logits, (*missing, (0, 0), (0, 0))).reshape(b, parts, at_once, h, w)
        weights = jnp.pad(weights, missing).reshape(b, parts, at_once)
        first = at_once * jnp.arange(parts)
        total, _ = jax.lax.scan(jax.checkpoint(add), total, (first, logits.swapaxes(0, 1), weights.swapaxes(0, 1)))
    return sum_classes(total)


def alignment_loss(
    correlation: Float[Array, "b t h w c"], label: Int[Array, "b height width"], temperature: float
) -> Float[Array, ""]:
    """Contrastive pixel-text loss on the correlation itself [ours].

    Each patch is to be nearest to the names of the classes it shows, in proportion to their pixels, which are sampled
    at no more than 4 x 4 points of the patch. It stands in for dinov3.txt's contrastive pre-training where the towers
    start from nothing.

    Args:
        correlation: cosines per class and patch, one channel per text half.
        label: index into the t classes, or -1; its sides are multiples of the grid's.
        temperature: what cosines are divided by.
    """
    _, t, h, w, _ = correlation.shape
    share = jax.nn.one_hot(sample_patches(label, h, w), t, axis=1).mean(axis=(3, 5))
    labelled = share.sum(axis=1)
    log_probability = jax.nn.log_softmax(correlation / temperature, axis=1).mean(axis=-1)
    losses = -(share * log_probability).sum(axis=1) / jnp.maximum(labelled, 1e-6)
    return masked_mean(losses, labelled > 0)


def sample_patches(label: Int[Array, "b height width"], h: int, w: int) -> Int[Array, "b h rows w columns"]:
    """The labels that `alignment_loss` sees of each of the h x w patches."""
    rows, columns = label.shape[1] // h, label.shape[2] // w
    return label.reshape(-1, h, rows, w, columns)[:, :, _sample_points(rows)][..., _sample_points(columns)]


def _sample_points(size: int) -> np.ndarray:
    points = min(size, SAMPLES_PER_PATCH)
    return ((np.arange(points) + 0.5) * size / points).astype(np.int64)


def named_labels(label: Int[Array, "b h w"], class_ids: Int[Array, "b k"]) -> Int[Array, "b h w"]:
    """From positions in each image's own class list to indices of names; -1 stays."""
    b, h, w = label.shape
    named = jnp.take_along_axis(class_ids, jnp.maximum(label, 0).reshape(b, h * w), axis=1).reshape(b, h, w)
    return jnp.where(label >= 0, named, -1)


def masked_mean(values: Array, mask: Array) -> Float[Array, ""]:
    """Mean over the entries the mask admits; 0 where it admits none."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)
