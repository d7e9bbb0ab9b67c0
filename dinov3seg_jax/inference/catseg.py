"""CAT-Seg as it was published: five views, each with its own best classes, blended as probabilities."""

from collections.abc import Iterable, Iterator
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.base import NO_CHECKSUMS, BaseSegmenter, checked_arrays
from dinov3seg_jax.inference.classes.chunks import ScoredChunk
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, text_encoder
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.recipes import describe_inference
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.views.catseg import cut_views, load_picture, seen_side
from dinov3seg_jax.inference.views.labels import BestClass
from dinov3seg_jax.inference.views.local_global import blend_logits, check_inference
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.bound import bind_frozen
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.text.class_lists import Names

BLENDED_TOGETHER = 32  # classes whose scores are at full size at once


class CatSegSegmenter(BaseSegmenter):
    """A model with the inference of `inference.resize = "catseg"`.

    A picture's views run one after the other, so that memory is that of one view and the classes it keeps. Of more than
    `model.late.max_classes` names each view keeps those that resemble it most; the others count 0 there.
    """

    def __init__(self, config: Config, parameters: Parameters):
        """Take a config and the model's parameters.

        Raises:
            UserError: the options of `config.inference` do not fit together, or a template has no slot.
        """
        options, patch = config.inference, config.model.vision.patch_size
        check_inference(options, patch)
        if options.all_classes:
            raise UserError("inference.all_classes is not CAT-Seg's form; set inference.resize to 'short_side'.")
        config, parameters = at_precision(config, parameters)
        self.config = config
        self.parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        self.embed = ClassEmbeddings.cached(
            text_encoder(config.model, partial(bind_frozen, config.model)),
            self.parameters,
            options.templates,
            config.model,
            NO_CHECKSUMS,
        )

        self._side = side = seen_side(options, patch)

        @jit
        @traced_once((config.model, options))
        def decode(
            parameters: Parameters,
            view: Float[Array, "1 h w 3"],
            text: Float[Array, "1 t d"],
            class_mask: Bool[Array, "1 t"],
        ) -> Float[Array, "1 t h2 w2"]:
            images = resize_linear(view / 255, side, side)
            return bind_frozen(config.model, parameters)(images, text, class_mask).logits

        @jit
        def blend(logits: Float[Array, "n t h w"]) -> Float[Array, "1 t square square"]:
            square, window = options.image_size, options.window
            corners = plan_windows(square, square, window, options.stride)
            return blend_logits(
                logits[None, :-1], logits[-1:], corners, (window, window), (window, window), (square, square)
            )

        self._decode, self._blend = decode, blend

    def describe(self) -> str:
        """See `BaseSegmenter`."""
        return describe_inference(self.config.inference)

    def accept(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """See `BaseSegmenter`: a name must not be empty, doubled or too long for a prompt."""
        return self.embed.accept(names)

    def view_patches(self) -> int:
        """See `BaseSegmenter`: the views run one after the other."""
        return (self._side // self.config.model.vision.patch_size) ** 2

    def view_logits(
        self, views: Float[np.ndarray, "n side side 3"], text: Float[np.ndarray, "t d"], mask: Bool[np.ndarray, " t"]
    ) -> Float[np.ndarray, "n t h w"]:
        """Logits of each view, on the host; those of classes that a view drops are -100."""
        found = (self._decode(self.parameters, view[None], text[None], mask[None]) for view in views)
        return np.concatenate([np.asarray(logits, np.float32) for logits in found])

    def scores(self, logits: Float[np.ndarray, "n t h w"], mask: Bool[np.ndarray, " t"]) -> Iterator[ScoredChunk]:
        """Blended scores of a few classes at a time, in [0, 1], on the square."""
        count = min(BLENDED_TOGETHER, len(mask))
        missing = -len(mask) % count
        logits, mask = np.pad(logits, ((0, 0), (0, missing), (0, 0), (0, 0))), np.pad(mask, (0, missing))
        for first in range(0, len(mask), count):
            some = slice(first, first + count)
            yield ScoredChunk(first, self._blend(logits[:, some]), jnp.asarray(mask[some]))

    def segment_arrays(
        self, images: Iterable[UInt8[np.ndarray, "h w 3"]], names: Names, batch_size: int = 1
    ) -> list[Segmentation]:
        """Segment pictures of any sizes, one after the other.

        Args:
            images: RGB.
            names: as in `segment`.
            batch_size: not used.

        Returns:
            One result for each picture; its confidence is the blended probability.

        Raises:
            UserError: see `BaseSegmenter.segment_arrays`.
        """
        images, names = checked_arrays(images, batch_size), self.check_names(names)
        text, mask = self.embed.filled(names)
        return [Segmentation(*self._label(image, text, mask), names, image) for image in images]

    def _label(
        self, image: UInt8[np.ndarray, "h w 3"], text: Float[np.ndarray, "t d"], mask: Bool[np.ndarray, " t"]
    ) -> tuple[np.ndarray, np.ndarray]:
        options = self.config.inference
        views = cut_views(load_picture(image, options.image_size), options.image_size, options.window, options.stride)
        best = BestClass([image.shape[:2]])
        for chunk in self.scores(self.view_logits(views, text, mask), mask):
            best.update(chunk.scores, chunk.class_mask, chunk.first)
        (found,) = best.results()
        return found
