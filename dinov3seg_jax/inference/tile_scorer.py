"""Scores of tiles: how a model segments a picture of any size, piece by piece (§7)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from dinov3seg_jax.config import Config
from dinov3seg_jax.inference.classes.chunks import ScoredChunk, gather_scores
from dinov3seg_jax.inference.device.sharing import shared_out
from dinov3seg_jax.inference.views.blend import Shapes, label_tiles
from dinov3seg_jax.inference.views.labels import Found
from dinov3seg_jax.inference.views.tiles import ArraySource, Tiling, plan_tiles, tile_stride
from dinov3seg_jax.text.class_lists import NamedClass

ScoreList = Callable[[UInt8[np.ndarray | Array, "b h w 3"], Sequence[str | NamedClass]], Iterator[ScoredChunk]]

BAND_BYTES = 2**30  # of the scores that are blended together
DECODER_SCALE = 4  # of its grid to that of its input


class TileScorer:
    """Cuts pictures into tiles, and scores each as a picture of its own."""

    def __init__(self, config: Config, score_list: ScoreList, mesh: Mesh | None):
        """Take a model.

        Args:
            config: `inference` says the size of a tile, and the scale of pictures.
            score_list: scores of all names on resized pictures, a few names at a time.
            mesh: of the devices that share tiles out.
        """
        self._config, self._score_list, self._mesh = config, score_list, mesh

    def plan(self, height: int, width: int) -> Tiling:
        """The tiles of a picture of any size; see `views.tiles`."""
        return plan_tiles(height, width, self._config.inference, self._config.model.vision.patch_size)

    def shapes(self, classes: int) -> Shapes:
        """What the tiles of all pictures have in common, for a list of so many classes."""
        options, model = self._config.inference, self._config.model
        side, patch_size = options.image_size, model.vision.patch_size
        pixels = options.fusion == "logits" and options.mode != "whole"
        cells = side if pixels else side // patch_size * model.early.factor * DECODER_SCALE
        return Shapes.of(side, cells, classes, tile_stride(options, patch_size), options.tile_scale)

    def score(
        self, pixels: UInt8[np.ndarray, "b side side 3"], names: Sequence[str | NamedClass]
    ) -> Float[np.ndarray, "b t g g"]:
        """Scores of all names on tiles, on the host; a class that `best_classes` rejects in a tile has 0 there."""
        on_devices = pixels if self._mesh is None else jax.device_put(pixels, shared_out(self._mesh))
        return gather_scores(self._score_list(on_devices, names), len(pixels), len(names))

    def label(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]], names: Sequence[NamedClass], batch_size: int
    ) -> list[Found]:
        """Pictures in memory; `batch_size` tiles, of whichever picture, run together."""
        shapes = self.shapes(len(names))
        widest = max(BAND_BYTES // (4 * shapes.classes * (shapes.cells + 1)), shapes.cells)
        work = ((ArraySource(image), self.plan(image.shape[0], image.shape[1])) for image in images)
        labels = [np.empty(image.shape[:2], np.int32) for image in images]
        confidence = [np.empty(image.shape[:2], np.float32) for image in images]
        for piece in label_tiles(work, partial(self.score, names=names), shapes, batch_size, widest):
            height, width = piece.labels.shape
            place = slice(piece.top, piece.top + height), slice(piece.left, piece.left + width)
            labels[piece.picture][place] = piece.labels
            confidence[piece.picture][place] = piece.confidence
        return list(map(Found, labels, confidence))
