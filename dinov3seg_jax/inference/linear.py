"""Sliding inference of a linear head as the DINOv3 repository evaluates it (its specification, section 12.2)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import Config
from dinov3seg_jax.data.transforms import short_side_size
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.base import BaseSegmenter
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.recipes import describe_inference
from dinov3seg_jax.inference.views.labels import Found
from dinov3seg_jax.inference.views.sliding import WINDOWS_AT_ONCE, Views, batches, cut, find_in_views
from dinov3seg_jax.inference.views.windows import plan_windows, window_size
from dinov3seg_jax.models.bound import bind_frozen
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.text.class_lists import ClassList, NamedClass

LONGEST_FOR_SIDE = 8  # ours: longer pictures are made smaller still


class LinearSegmenter(BaseSegmenter):
    """A backbone with a trained linear head, ready for pictures; of `config.inference` it reads only the sizes.

    `inference.mode` is "slide", where the short side becomes image_size, or "whole", where the picture is stretched to
    a square of image_size.
    """

    def __init__(self, config: Config, parameters: Parameters):
        """Take a config and the model's parameters.

        Raises:
            UserError: the mode is another, or the stride leaves gaps between the windows.
        """
        options = config.inference
        if options.mode == "local_global":
            raise UserError("inference.mode 'local_global' is not for a linear head; set it to 'slide' or 'whole'.")
        if options.mode == "slide" and options.stride > options.window:
            raise UserError(
                f"inference.stride {options.stride} is larger than inference.window {options.window} and leaves gaps; "
                f"use {options.window} or less."
            )
        config, parameters = at_precision(config, parameters)
        self.config = config
        self.confidence_kind = "softmax"
        self.parameters = {name: jnp.asarray(value) for name, value in parameters.items()}

        @jit
        @traced_once(config.model)
        def classify(parameters: Parameters, windows: Float[Array, "n h w 3"]) -> Float[Array, "n t gh gw"]:
            return bind_frozen(config.model, parameters)(windows)

        self._classify = classify

    def describe(self) -> str:
        """See `BaseSegmenter`."""
        return describe_inference(self.config.inference)

    def accept(self, asked: ClassList) -> ClassList:
        """See `BaseSegmenter`: there must be as many names as the head has classes, and no others."""
        count = self.config.model.linear.classes
        if len(asked.classes) != count:
            raise UserError(
                f"{len(asked.classes)} class names were given and the linear head has {count} classes; name those that "
                "it was trained on, in their order."
            )
        if asked.background or any(len(one.names) > 1 or one.prompt for one in asked.classes):
            raise UserError(
                "a linear head knows the classes that it was trained on and reads no names; leave synonyms, prompts "
                "and the background out."
            )
        return asked

    def view_patches(self) -> int:
        """See `BaseSegmenter`."""
        options = self.config.inference
        pixels = options.image_size**2 if options.mode == "whole" else WINDOWS_AT_ONCE * options.window**2
        return pixels // self.config.model.vision.patch_size**2

    def label(
        self,
        images: list[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[NamedClass],
        batch_size: int,
        scores: bool = False,
    ) -> list[Found]:
        """See `BaseSegmenter`: one after the other, as the windows of one are the batch; `batch_size` is not used.

        The confidence is the softmax over the classes.
        """
        options, mask = self.config.inference, jnp.ones(len(classes), bool)
        results = []
        for image in images:
            pixels = resize_as_dinov3(image, options.image_size).astype(np.float32) / 255
            side = options.window
            if options.mode == "whole":
                side = options.image_size
                pixels = np.asarray(resize_linear(jnp.asarray(pixels[None]), side, side)[0])
            views = self._see(pixels, side)
            results.append(find_in_views(views, mask, *image.shape[:2], softmax="pixels", scores=scores))
        return results

    def _see(self, pixels: Float[np.ndarray, "h w 3"], side: int) -> Views:
        size = pixels.shape[0], pixels.shape[1]
        side = crop_side(*size, side)
        corners = plan_windows(*size, side, min(self.config.inference.stride, side))
        window = window_size(*size, side)
        parts = [self._classify(self.parameters, part) for part in batches(jnp.asarray(cut(pixels, corners, window)))]
        return Views(jnp.concatenate(parts)[: len(corners)], corners, window, size)


def resize_as_dinov3(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pillow's bilinear resize to a short side of `size` pixels, the long side rounded to a pixel.

    Where the long side would exceed `LONGEST_FOR_SIDE` times `size`, both sides shrink [ours].
    """
    rows, columns = short_side_size(image.shape[0], image.shape[1], size, LONGEST_FOR_SIDE * size)
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))


def crop_side(height: int, width: int, window: int) -> int:
    """The side of the windows: where it exceeds both sides of the picture, the shorter of these."""
    return min(height, width) if max(height, width) < window else window
