"""CAT-Seg as it was published: five views, each with its own best classes, blended as probabilities."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.base import NO_CHECKSUMS, BaseSegmenter
from dinov3seg_jax.inference.classes.chunks import ClassChunks, ScoredChunk, gather_scores
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, text_encoder
from dinov3seg_jax.inference.device.buckets import bucket
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.recipes import describe_inference
from dinov3seg_jax.inference.views.catseg import cut_views, load_picture, seen_side, stretched
from dinov3seg_jax.inference.views.labels import BestClass, Found, resize_scores
from dinov3seg_jax.inference.views.local_global import blend_logits, check_inference
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.bound import bind_frozen
from dinov3seg_jax.models.chunked import can_chunk
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.models.scene import REJECTED_LOGIT
from dinov3seg_jax.text.class_lists import ClassList, NamedClass

BLENDED_TOGETHER = 32  # classes whose scores are at full size at once


class ViewLogits(NamedTuple):
    """Logits of the classes that each view keeps."""

    kept: Float[np.ndarray, "n k h w"]  # on the host
    lists: Int[np.ndarray, "n k"]  # which classes these are, each view's in rising order

    def of(self, classes: Int[np.ndarray, " t"]) -> Float[np.ndarray, "n t h w"]:
        """Of some classes, in rising order; those of classes that a view rejects are `REJECTED_LOGIT`."""
        views, k, h, w = self.kept.shape
        found = np.full((views, len(classes), h, w), REJECTED_LOGIT, np.float32)
        for own, kept, listed in zip(found, self.kept, self.lists, strict=True):
            places = np.minimum(np.searchsorted(listed, classes), k - 1)
            there = listed[places] == classes
            own[there] = kept[places[there]]
        return found


class CatSegSegmenter(BaseSegmenter):
    """A model with the inference of `inference.resize = "catseg"`.

    A picture's views run one after the other, and of each some classes at a time, so that memory is that of one view
    and of the logits that are kept. Of more than `model.late.max_classes` names each view keeps those that resemble it
    most; the others count 0 there.
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
        one_view = _as_one_view(config)
        if not can_chunk(one_view.model):
            raise UserError("inference.resize 'catseg' needs linear class attention; set it to 'square'.")
        self.config = config
        self.parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        self.embed = ClassEmbeddings.cached(
            text_encoder(config.model, partial(bind_frozen, config.model)),
            self.parameters,
            options.templates,
            config.model,
            NO_CHECKSUMS,
        )
        self._side = seen_side(options, patch)
        self._score_view = ClassChunks(one_view)

        @jit
        def blend(logits: Float[Array, "n t h w"]) -> Float[Array, "1 t square square"]:
            square, window = options.image_size, options.window
            corners = plan_windows(square, square, window, options.stride)
            return blend_logits(
                logits[None, :-1], logits[-1:], corners, (window, window), (window, window), (square, square)
            )

        self._blend = blend

    def with_parameters(self, parameters: Parameters) -> Self:
        """See `BaseSegmenter`."""
        other = super().with_parameters(parameters)
        other.embed = self.embed.with_parameters(other.parameters)
        return other

    def describe(self) -> str:
        """See `BaseSegmenter`."""
        return describe_inference(self.config.inference)

    def accept(self, asked: ClassList) -> ClassList:
        """See `BaseSegmenter`: a name must not be empty, doubled or too long for a prompt."""
        return self.embed.accept(asked)

    def view_patches(self) -> int:
        """See `BaseSegmenter`: the views run one after the other."""
        return (self._side // self.config.model.vision.patch_size) ** 2

    def view_logits(self, views: Float[np.ndarray, "n side side 3"], text: Float[np.ndarray, "t d"]) -> ViewLogits:
        """What the model says of each view."""
        kept, lists = zip(*(self._of_view(stretched(view, self._side), text) for view in views), strict=True)
        return ViewLogits(np.stack(kept), np.stack(lists))

    def _of_view(
        self, view: Float[np.ndarray, "side side 3"], text: Float[np.ndarray, "t d"]
    ) -> tuple[Float[np.ndarray, "k h w"], Int[np.ndarray, " k"]]:
        """Logits of the classes that a view keeps, and which these are."""
        logits, listed = [], np.arange(len(text))
        for chunk in self._score_view(self.parameters, view[None], text):
            logits.append(np.asarray(chunk.scores[0], np.float32))
            listed = listed if chunk.lists is None else chunk.lists[0]
        return np.concatenate(logits)[: len(listed)], listed

    def scores(self, logits: ViewLogits) -> Iterator[ScoredChunk]:
        """Blended scores in [0, 1] on the square, a few at a time, of the classes that some view keeps.

        The others are 0 everywhere. Indices are into `lists` of the chunks, which has those that are kept.
        """
        classes = np.unique(logits.lists)
        count = min(BLENDED_TOGETHER, bucket(len(classes)))
        for first in range(0, len(classes), count):
            some = logits.of(classes[first : first + count])
            mask = np.arange(count) < some.shape[1]
            filled = np.pad(some, ((0, 0), (0, count - some.shape[1]), (0, 0), (0, 0)))
            yield ScoredChunk(first, self._blend(filled), jnp.asarray(mask), classes[None])

    def label(
        self,
        images: list[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[NamedClass],
        batch_size: int,
        scores: bool = False,
    ) -> list[Found]:
        """See `BaseSegmenter`: one after the other; `batch_size` is not used.

        The confidence is the blended probability.
        """
        text = self.embed(classes)
        return [self._label(image, text, scores) for image in images]

    def _label(self, image: UInt8[np.ndarray, "h w 3"], text: Float[np.ndarray, "t d"], scores: bool) -> Found:
        options = self.config.inference
        views = cut_views(load_picture(image, options.image_size), options.image_size, options.window, options.stride)
        size = image.shape[0], image.shape[1]
        best, classes, kept = BestClass([size]), np.arange(len(text)), []
        for chunk in self.scores(self.view_logits(views, text)):
            best.update(chunk.scores, chunk.class_mask, chunk.first)
            classes = classes if chunk.lists is None else chunk.lists[0]
            if scores:
                kept.append(chunk)
        ((labels, confidence),) = best.results()
        every = resize_scores(gather_scores(kept, 1, len(text))[0], *size) if scores else None
        return Found(classes[labels].astype(np.int32), confidence, every)


def _as_one_view(config: Config) -> Config:
    """How one view is scored: as a picture of its own, whose classes are rejected before the head sees them."""
    late, options = config.model.late, config.inference
    model = dataclasses.replace(config.model, late=dataclasses.replace(late, max_classes=0))
    inference = dataclasses.replace(options, mode="whole", best_classes=late.max_classes)
    return dataclasses.replace(config, model=model, inference=inference)
