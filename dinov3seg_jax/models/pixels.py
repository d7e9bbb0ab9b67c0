"""Pixel values as the towers expect them."""

import numpy as np
from jaxtyping import Array, Float

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)


def normalize_pixels(
    images: Float[Array, "b h w 3"], mean: np.ndarray = MEAN, deviation: np.ndarray = DEVIATION
) -> Float[Array, "b h w 3"]:
    """From [0, 1] to mean 0 and deviation 1, by default those of ImageNet, which DINOv3 (LVD-1689M) and SAM share."""
    return (images - mean) / deviation
