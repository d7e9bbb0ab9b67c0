"""How well a step's own logits match its masks: the mIoU of training, nearly for nothing."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def count_agreement(
    logits: Float[Array, "b t h w"], label: Int[Array, "b height width"], class_ids: Int[Array, "b t"], names: int
) -> Int[Array, "3 names"]:
    """Cells of the logits by class: (correct, predicted, true). The label of a cell is that of the pixel in its middle.

    Args:
        logits: one per class of each image's list.
        label: index into the list, or -1: such a cell counts for nothing.
        class_ids: the lists, indices into the names.
        names: how many there are.
    """
    middles = [
        ((np.arange(cells) + 0.5) * pixels / cells).astype(np.int64)
        for cells, pixels in zip(logits.shape[2:], label.shape[1:], strict=True)
    ]
    true = label[:, middles[0]][:, :, middles[1]].reshape(len(label), -1)
    best = logits.argmax(axis=1).reshape(len(label), -1)
    labelled = true >= 0

    def count(positions: Array, counted: Array) -> Array:
        named = jnp.take_along_axis(class_ids, positions, axis=1)
        return jnp.zeros(names, jnp.int32).at[named].add(counted.astype(jnp.int32))

    some = jnp.maximum(true, 0)
    return jnp.stack([count(some, labelled & (best == true)), count(best, labelled), count(some, labelled)])


def mean_iou(counts: Int[np.ndarray, "3 names"]) -> float:
    """In percent, over the classes that are true somewhere; NaN where there are none."""
    correct, predicted, true = np.asarray(counts, np.float64)
    present = true > 0
    return float(np.mean(100 * correct[present] / (predicted + true - correct)[present])) if present.any() else np.nan
