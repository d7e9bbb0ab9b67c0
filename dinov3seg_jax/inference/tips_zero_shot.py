"""TIPSv2 alone as a segmenter, by the recipe of its notebook: pure functions from pixels and prompts to score maps.

Each patch of the value path gets its cosine with each class. In windows, a softmax over the cosines (without a
temperature) is averaged; see `views.sliding`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dinov3seg_jax.inference.views.sliding import Views, cut
from dinov3seg_jax.inference.views.windows import plan_windows, window_size
from dinov3seg_jax.inference.zero_shot import resize_as_torchvision, stretch
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.towers import TwoTowers

SHORT_SIDE, WINDOW, STRIDE = 448, 448, 336  # pixels
PATCH_SIZE = 14
LONGEST_FOR_SIDE = 8  # ours: longer pictures are made smaller still

TEMPLATES = (  # TCL's
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)

Compare = Callable[[Float[Array, "n height width 3"]], Float[Array, "n t h w"]]


def average_prompts(embeddings: Float[Array, "t p d"]) -> Float[Array, "t d"]:
    """One text per class: the mean of its prompts, each of unit length first, of unit length again."""
    return l2_normalize(l2_normalize(embeddings).mean(axis=1))


def picture_pixels(image: UInt8[np.ndarray, "h w 3"], short_side: int = SHORT_SIDE) -> Float[np.ndarray, "h2 w2 3"]:
    """A picture's pixels in [0, 1] at the size that the model sees; there is no other normalisation."""
    return resize_as_torchvision(image, short_side, LONGEST_FOR_SIDE).astype(np.float32) / 255


def cosines(
    towers: TwoTowers, pixels: Float[Array, "n height width 3"], text: Float[Array, "t d"]
) -> Float[Array, "n t h w"]:
    """Cosine of each patch with each class, on the grid of patches.

    Args:
        towers: with their parameters.
        pixels: in [0, 1], of any size: sides that are no multiples of the patch size are stretched to the next one.
        text: of `average_prompts`.
    """
    features = towers.vision(stretch(pixels, PATCH_SIZE))
    return jnp.einsum("nhwd,td->nthw", l2_normalize(features.patches), text, precision=jax.lax.Precision.HIGHEST)


def slide(compare: Compare, pixels: Float[np.ndarray, "h w 3"], window: int = WINDOW, stride: int = STRIDE) -> Views:
    """Windows over a picture and their cosines, to be averaged with `softmax="windows"`.

    Args:
        compare: `cosines` of one model and one list of classes.
        pixels: of `picture_pixels`.
        window, stride: in pixels.
    """
    size = pixels.shape[0], pixels.shape[1]
    corners, seen = plan_windows(*size, window, stride), window_size(*size, window)
    return Views(compare(jnp.asarray(cut(pixels, corners, seen))), corners, seen, size)
