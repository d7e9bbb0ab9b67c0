"""dinov3.seg, ready for pictures and class names (§7)."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.base import NO_CHECKSUMS, BaseSegmenter
from dinov3seg_jax.inference.classes.chunks import ClassChunks, ScoredChunk, gather_scores
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, text_encoder
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.device.sharing import (
    copies_of,
    make_mesh,
    on_every_device,
    on_own_pictures,
    shared_out,
)
from dinov3seg_jax.inference.recipes import describe_inference
from dinov3seg_jax.inference.tile_scorer import TileScorer
from dinov3seg_jax.inference.views.labels import BestClass, Found, best_of, resize_scores
from dinov3seg_jax.inference.views.local_global import (
    check_inference,
    resize_image,
    resized_size,
    score_classes,
)
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.bound import bind_frozen
from dinov3seg_jax.models.chunked import can_chunk
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.text.class_lists import ClassList, NamedClass


class Segmenter(BaseSegmenter):
    """The whole model.

    Programs are compiled on first use for each resized size, batch size and bucket of class counts; with
    `inference.resize = "square"` every picture has the same size, and with "tiled" is cut into tiles that have.
    """

    shares_devices: ClassVar[bool] = True
    tiles: TileScorer

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        devices: Sequence[jax.Device] = (),
    ):
        """Take a model.

        Args:
            config: of the run; `inference` says how it is used.
            parameters: all of them.
            devices: of this process, that share batches out; default the first.

        Raises:
            UserError: the options of `config.inference` do not fit together, or a template has no slot.
        """
        check_inference(config.inference, config.model.vision.patch_size)
        if config.inference.all_classes:
            late = dataclasses.replace(config.model.late, max_classes=0)
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, late=late))
        if config.inference.best_classes and not can_chunk(config.model):
            raise UserError(
                "inference.best_classes needs linear class attention without CAT-Seg's truncation; set it to 0, or "
                "model.late.max_classes to 0."
            )
        config, parameters = at_precision(config, parameters)
        self.config = config
        self.parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        self.embed = ClassEmbeddings.cached(
            text_encoder(config.model, partial(bind_frozen, config.model)),
            self.parameters,
            config.inference.templates,
            config.model,
            NO_CHECKSUMS,
        )
        self._mesh = mesh = make_mesh(devices)
        if mesh is not None:
            self.parameters = jax.device_put(self.parameters, on_every_device(mesh))

        @jit
        @on_own_pictures(mesh, common=("parameters", "text", "class_mask"))
        @traced_once((config.model, config.inference))
        def score(
            parameters: Parameters,
            images: UInt8[Array, "b h w 3"],
            text: Float[Array, "1 t d2"],
            class_mask: Bool[Array, "1 t"],
        ) -> Float[Array, "b t h2 w2"]:
            pixels = images.astype(jnp.float32) / 255
            return score_classes(bind_frozen(config.model, parameters), pixels, text, class_mask, config.inference)

        self._score = score
        self.chunks = ClassChunks(config, mesh) if can_chunk(config.model) else None
        self.tiles = TileScorer(config, self.score_list, mesh)

    def with_parameters(self, parameters: Parameters) -> Self:
        """See `BaseSegmenter`."""
        other = super().with_parameters(parameters)
        other.embed = self.embed.with_parameters(other.parameters)
        other.tiles = TileScorer(other.config, other.score_list, self._mesh)
        return other

    def describe(self) -> str:
        """See `BaseSegmenter`."""
        return describe_inference(self.config.inference)

    def accept(self, asked: ClassList) -> ClassList:
        """See `BaseSegmenter`: a name must not be empty, doubled or too long for a prompt."""
        return self.embed.accept(asked)

    def label(
        self,
        images: list[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[NamedClass],
        batch_size: int,
        scores: bool = False,
    ) -> list[Found]:
        """See `BaseSegmenter`: in batches of pictures that have the same size once resized.

        `batch_size` counts pictures, or tiles of them, and is rounded up to a multiple of the devices. A batch that is
        not full is filled up, so that it needs no program of its own. Where fewer pictures than there are devices are
        asked for at a time, devices share the class list of each.
        """
        if self.config.inference.resize == "tiled":
            return self.tiles.label(images, classes, self._whole_batch(batch_size))
        copies = 1
        if self._mesh is not None and self.chunks is not None:
            copies = copies_of(max(batch_size, len(images)), self._mesh.size)
        batch_size = self._whole_batch(batch_size * copies) // copies
        options, patch_size = self.config.inference, self.config.model.vision.patch_size
        resized = [resize_image(image, options, patch_size) for image in images]
        same_size: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(resized):
            same_size.setdefault(picture.shape, []).append(index)
        results: dict[int, Found] = {}
        for group in same_size.values():
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                filled = np.repeat(batch + batch[-1:] * (batch_size - len(batch)), copies)
                sizes = [images[index].shape[:2] for index in filled]
                stacked = np.stack([resized[index] for index in filled])
                found = self._label_batch(stacked, sizes, len(batch) * copies, classes, scores, copies)
                results |= {
                    index: best_of(found[place * copies : (place + 1) * copies]) for place, index in enumerate(batch)
                }
        return [results[index] for index in range(len(images))]

    def batch_shape(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture has once resized."""
        return resized_size((height, width), self.config.inference, self.config.model.vision.patch_size)

    def held_bytes(self) -> int:
        """Of the parameters, and of what is kept of all classes between the blocks."""
        return super().held_bytes() + self.config.inference.kept_megabytes * 2**20

    def view_patches(self) -> int:
        """See `BaseSegmenter`."""
        options = self.config.inference
        side, window = options.image_size, min(options.window, options.image_size)
        windows = 0 if options.mode == "whole" else len(plan_windows(side, side, window, min(options.stride, window)))
        return (side**2 + windows * window**2) // self.config.model.vision.patch_size**2

    def score_list(
        self, pixels: UInt8[np.ndarray | Array, "b h w 3"], names: Sequence[str | NamedClass], copies: int = 1
    ) -> Iterator[ScoredChunk]:
        """Scores of all names on resized pictures, a few names at a time where the model allows it.

        With `copies`, so many rows of pixels in succession are one picture, of which each has other names.
        """
        if self.chunks is not None:
            yield from self.chunks(self.parameters, pixels, self.embed(names), copies)
        else:
            text, class_mask = self.embed.filled(names)
            scores = self._score(self.parameters, pixels, text[None], class_mask[None])
            yield ScoredChunk(0, scores, jnp.asarray(class_mask))

    def _whole_batch(self, batch_size: int) -> int:
        devices = 1 if self._mesh is None else self._mesh.size
        return -(-batch_size // devices) * devices

    def _label_batch(
        self,
        pixels: UInt8[np.ndarray, "b h w 3"],
        sizes: Sequence[tuple[int, int]],
        wanted: int,
        classes: Sequence[NamedClass],
        scores: bool,
        copies: int,
    ) -> list[Found]:
        """What is found in the first `wanted` pictures, resized to `sizes`; `copies` as for `score_list`."""
        mesh = self._mesh
        each = len(pixels) // (1 if mesh is None else mesh.size)
        # Labelled together: the first picture of every device, then the second of every device, ...
        together = [range(place, len(pixels), each) for place in range(min(each, wanted))]
        best = [BestClass([sizes[place] for place in places], mesh) for places in together]
        on_devices = pixels if mesh is None else jax.device_put(pixels, shared_out(mesh))
        lists, kept = None, []
        for chunk in self.score_list(on_devices, classes, copies):
            lists = chunk.lists
            for place, so_far in enumerate(best):
                so_far.update(chunk.scores, chunk.class_mask, chunk.first, place)
            if scores:
                kept.append(chunk)
        found = {
            place: Found(*labelled)
            for places, so_far in zip(together, best, strict=True)
            for place, labelled in zip(places, so_far.results(), strict=True)
        }
        if lists is not None:
            found = {place: one._replace(labels=lists[place][one.labels]) for place, one in found.items()}
        if scores:
            grids = gather_scores(kept, len(pixels), len(classes))
            found = {
                place: one._replace(scores=resize_scores(grids[place], *sizes[place])) for place, one in found.items()
            }
        return [found[place] for place in range(wanted)]
