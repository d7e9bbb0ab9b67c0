"""CAFe-DINO as its scripts evaluate it: a stretched square, overlapping windows, their raw logits averaged."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.base import BaseSegmenter
from dinov3seg_jax.inference.classes.embedding_cache import open_cache
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, text_encoder
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.views.labels import Found
from dinov3seg_jax.inference.views.opencv_resize import resize_as_opencv
from dinov3seg_jax.inference.views.sliding import Views, cut, find_in_views
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.bound import bind_frozen
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.text.class_lists import ClassList, NamedClass

MEANS_OF_RAW_TEXTS = "mean before length 1"  # tells its embeddings on disk from those of other models


class CafeDinoSegmenter(BaseSegmenter):
    """CAFe-DINO, ready for pictures; of `config.inference` it reads image_size, window, stride and templates.

    Windows run one after the other. AnyUp weighs all classes together, so each number of names has a program of its
    own. A name takes about 1 MB for each copy of its logits on a square of 512 pixels.
    """

    def __init__(self, config: Config, parameters: Parameters):
        """Take a config and the model's parameters.

        Raises:
            UserError: the mode is another, windows leave gaps, or they are no whole patches.
        """
        options, patch = config.inference, config.model.vision.patch_size
        if options.mode != "slide" or options.resize != "square":
            raise UserError(
                f"CAFe-DINO is used with inference.mode 'slide' and inference.resize 'square', not '{options.mode}' "
                f"and '{options.resize}'; leave both as they are."
            )
        side = min(options.window, options.image_size)
        if options.stride > side:
            raise UserError(
                f"inference.stride {options.stride} is larger than the windows of {side} and leaves gaps; use {side} "
                "or less."
            )
        if side % patch:
            raise UserError(
                f"CAFe-DINO sees windows of {side} pixels, which is no multiple of its patches of {patch}; set "
                f"--config.inference.window={max(side // patch, 1) * patch}, and image_size no smaller."
            )
        config, parameters = at_precision(config, parameters)
        self.config = config
        self.confidence_kind = "softmax"
        self.parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        self._side = side
        bind = partial(bind_frozen, config.model)
        self.embed = ClassEmbeddings(
            text_encoder(config.model, bind),
            self.parameters,
            options.templates,
            config.model,
            lambda tokenizer: open_cache(
                config.model, self.parameters, tokenizer=f"{tokenizer.fingerprint} {MEANS_OF_RAW_TEXTS}"
            ),
        )

        @jit
        @traced_once(config.model)
        def classify(
            parameters: Parameters, window: Float[Array, "1 side side 3"], text: Float[Array, "t d"]
        ) -> Float[Array, "1 t side side"]:
            return bind(parameters)(window, text)

        self._classify = classify

    def describe(self) -> str:
        """See `BaseSegmenter`."""
        options = self.config.inference
        norms = "of each window" if self.config.model.cafedino.batch_statistics else "stored in training"
        return (
            f"CAFe-DINO: each picture is stretched to {options.image_size} x {options.image_size} pixels and cut into "
            f"windows of {self._side} every {options.stride}, whose logits are averaged. Batch statistics: {norms}. "
            f"{len(options.templates)} prompts a name."
        )

    def accept(self, asked: ClassList) -> ClassList:
        """See `BaseSegmenter`: a name must not be empty, doubled or too long for a prompt."""
        return self.embed.accept(asked)

    def view_patches(self) -> int:
        """See `BaseSegmenter`: the windows run one after the other."""
        return (self._side // self.config.model.vision.patch_size) ** 2

    def label(
        self,
        images: list[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[NamedClass],
        batch_size: int,
        scores: bool = False,
    ) -> list[Found]:
        """See `BaseSegmenter`: one after the other; `batch_size` is not used.

        The confidence is the softmax over the names. It is published at `inference.image_size`; here the averaged
        logits are resized bilinearly to the picture's own size.
        """
        size = self.config.inference.image_size
        text = self.embed(classes)[:, -self.config.model.vision.dim :]
        corner, square, mask = np.zeros((1, 2), int), (size, size), jnp.ones(len(classes), bool)
        results = []
        for image in images:
            logits = self.logits(resize_as_opencv(image, size, size), text)
            views = Views(jnp.asarray(logits[None]), corner, square, square)
            results.append(find_in_views(views, mask, *image.shape[:2], softmax="pixels", scores=scores))
        return results

    def logits(self, image: UInt8[np.ndarray, "h w 3"], text: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t h w"]:
        """The mean of the windows' logits, on the host.

        Args:
            image: RGB, at the size that is cut into windows.
            text: patch halves of the embeddings.
        """
        height, width = image.shape[:2]
        side = self._side
        corners = plan_windows(height, width, side, self.config.inference.stride)
        total, visits = np.zeros((len(text), height, width), np.float32), np.zeros((height, width), np.float32)
        for (top, left), window in zip(corners, cut(image, corners, (side, side)), strict=True):
            seen = self._classify(self.parameters, window[None].astype(np.float32) / 255, text)
            total[:, top : top + side, left : left + side] += np.asarray(seen[0], np.float32)
            visits[top : top + side, left : left + side] += 1
        total /= visits
        return total
