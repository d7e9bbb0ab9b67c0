"""What stands in for DINOv3's and dinov3.txt's pre-training where the towers start from random weights [ours].

No mask is looked at. First the vision backbone learns from pictures alone; then it is frozen, and its head and the
text tower learn from captions, as dinov3.txt's did (DINOv3's specification, 8).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dinov3seg_jax.models.dinov3seg import SegmentationModel
from dinov3seg_jax.models.functions import l2_normalize

HIGHEST_SCALE = 100.0  # of cosines between captions and images
TEMPERATURE = 0.2  # of cosines between patches
MARGIN = 2  # patches by which the second view is narrower
PATCHES = 1600  # that are told apart at once, each from all others; at least those of one image


def caption_loss(
    model: SegmentationModel, images: Float[Array, "b height width 3"], captions: Array
) -> Float[Array, ""]:
    """dinov3.txt's contrastive loss between images and captions: each is to be nearest to its own in the batch.

    Args:
        model: its class token and mean patch, side by side, meet both halves of a text's embedding.
        images: 0 to 1.
        captions: token ids, one row for each image.
    """
    features = model.see(images)
    shown = jnp.concatenate([features.cls, features.patches.mean(axis=(1, 2))], axis=-1)
    text: Any = model.text  # a tower with two halves
    scale = jnp.exp(jnp.clip(text.logit_scale[...], 0, np.log(HIGHEST_SCALE)))
    return nearest_to_own(shown, text(captions), scale)


def recognition_loss(
    model: SegmentationModel, images: Float[Array, "b height width 3"], key: Array
) -> Float[Array, ""]:
    """Contrastive loss between the backbone's patches in two views that share them, and differ in what is around.

    A patch is to be nearest to itself in the other view, of all patches of the batch: so it has to say what it shows,
    by what is the same whatever surrounds it. The views are an image, and a part of it that is `MARGIN` patches
    narrower each way. Of a batch with more than `PATCHES` of these, the first images alone are compared.

    Args:
        model: whose backbone it is.
        images: 0 to 1, of more than `MARGIN` patches each way.
        key: draws where the part lies, alike for all images.
    """
    patch = model.config.vision.patch_size
    rows, columns = (side // patch - MARGIN for side in images.shape[1:3])
    images = images[: max(PATCHES // (rows * columns), 1)]
    top, left = jax.random.randint(key, (2,), 0, MARGIN + 1)
    part = jax.lax.dynamic_slice(
        images, (0, top * patch, left * patch, 0), (len(images), rows * patch, columns * patch, 3)
    )
    whole = model.see(images).backbone_patches
    width = whole.shape[-1]
    shared = jax.lax.dynamic_slice(whole, (0, top, left, 0), (len(images), rows, columns, width))
    narrow = model.see(part).backbone_patches
    return nearest_to_own(shared.reshape(-1, width), narrow.reshape(-1, width), 1 / TEMPERATURE)


def nearest_to_own(
    first: Float[Array, "n d"], second: Float[Array, "n d"], scale: Float[Array, "*_"] | float
) -> Float[Array, ""]:
    """Symmetric InfoNCE: row i of each is to be nearest to row i of the other; `scale` multiplies the cosines."""
    logits = scale * jnp.einsum("id,jd->ij", l2_normalize(first), l2_normalize(second), precision="highest")
    own = jnp.arange(len(logits))
    ways = [optax.softmax_cross_entropy_with_integer_labels(one, own).mean() for one in (logits, logits.T)]
    return (ways[0] + ways[1]) / 2
