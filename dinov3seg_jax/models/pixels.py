"""Pixel values as the towers expect them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Pixels(NamedTuple):
    """Mean and deviation of each channel, of pixels in [0, 1]."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, mean: tuple[float, float, float], deviation: tuple[float, float, float]) -> "Pixels":
        """From plain numbers."""
        return cls(np.array(mean, np.float32), np.array(deviation, np.float32))


IMAGENET = Pixels.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SAT493M = Pixels.of((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
CLIP = Pixels.of((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
UNCHANGED = Pixels.of((0, 0, 0), (1, 1, 1))  # TIPSv2's


def normalize_pixels(images: Float[Array, "b h w 3"], pixels: Pixels = IMAGENET) -> Float[Array, "b h w 3"]:
    """From [0, 1] to mean 0 and deviation 1, by default those of ImageNet, which DINOv3 (LVD-1689M) and SAM share."""
    return (images - pixels.mean) / pixels.deviation
