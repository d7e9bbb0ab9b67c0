"""Scores of a class list, a few classes at a time (§4): memory and compiled programs know nothing of its length."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from dinov3seg_jax.config import Config
from dinov3seg_jax.inference.class_embeddings import bucket
from dinov3seg_jax.inference.local_global import prepare_scenes, score_logits
from dinov3seg_jax.models.chunked import Chunk, Scene, Sums, collect, decode, decode_chunks, kept_bytes, no_sums
from dinov3seg_jax.models.late_refinement import ClassSums
from dinov3seg_jax.models.parameters import Parameters, bind

# Numbers in the maps of one chunk. On a CPU 8 classes of 24 x 24 cells and 128 channels: few enough for its caches.
CHUNK_NUMBERS = {"cpu": 8 * 24 * 24 * 128}
OTHER_CHUNK_NUMBERS = 256 * 24 * 24 * 128


class ScoredChunk(NamedTuple):
    """Some of the classes of a list."""

    first: int  # index of the first of them
    scores: Float[Array, "b t h w"]  # in [0, 1]; see `local_global.score_classes`
    class_mask: Bool[Array, " t"]  # False for entries that fill the last chunk up


class ClassChunks:
    """Scores the classes of a list chunk by chunk, with the same result as `local_global.score_classes`.

    Programs are compiled for each size and number of pictures, whatever the list: its chunks are all equally long.
    """

    def __init__(self, config: Config, graph: nnx.GraphDef):
        """`config.model` is one that `models.chunked.can_chunk`."""
        self.config = config
        self._layers = config.model.late.layers if config.model.late.enabled else 0

        @jax.jit
        def start(parameters: Parameters, images: UInt8[Array, "b h w 3"]) -> tuple[Scene, ...]:
            return prepare_scenes(bind(graph, parameters), images.astype(jnp.float32) / 255, config.inference)

        @partial(jax.jit, static_argnames="keep")
        def gather(
            parameters: Parameters,
            scene: Scene,
            chunk: Chunk,
            sums: Sums,
            kept: Array | None,
            total: ClassSums,
            *,
            keep: bool,
        ) -> tuple[Array | None, ClassSums]:
            maps, total = collect(bind(graph, parameters), scene, chunk, sums, kept, total)
            return maps if keep else None, total

        @jax.jit
        def finish(
            parameters: Parameters, scene: Scene, chunk: Chunk, sums: Sums, kept: Array | None
        ) -> Float[Array, "b t h w"]:
            return decode(bind(graph, parameters), scene, chunk, sums, kept)

        @partial(jax.jit, static_argnames="size")
        def score(logits: tuple[Array, ...], size: tuple[int, int]) -> Float[Array, "b t h w"]:
            return score_logits(logits, size, config.inference, config.model.vision.patch_size)

        self._start, self._collect, self._decode, self._score = start, gather, finish, score

    def __call__(
        self, parameters: Parameters, images: UInt8[np.ndarray, "b h w 3"], text: Float[np.ndarray, "t d2"]
    ) -> Iterator[ScoredChunk]:
        """Score the classes everywhere.

        Args:
            parameters: of the model.
            images: RGB, already resized; the sides are multiples of the patch size.
            text: class embeddings, the same for all images.
        """
        scenes = self._start(parameters, images)
        height, width = images.shape[1:3]
        yield from self.score_scenes(parameters, scenes, (height, width), text, *self.plan(scenes, len(text)))

    def score_scenes(
        self,
        parameters: Parameters,
        scenes: tuple[Scene, ...],
        size: tuple[int, int],
        text: Float[np.ndarray, "t d2"],
        length: int,
        keep: bool,
    ) -> Iterator[ScoredChunk]:
        """The same from `prepare_scenes` of images of that size on; `length` and `keep` are those of `plan`."""
        filled = np.pad(text, ((0, -len(text) % length), (0, 0)))
        real = np.arange(len(filled)) < len(text)
        firsts = range(0, len(filled), length)
        parts = [slice(first, first + length) for first in firsts]
        chunks = [Chunk(jnp.asarray(filled[None, part]), jnp.asarray(real[None, part])) for part in parts]
        runs = [
            decode_chunks(
                partial(self._collect, parameters, scene),
                partial(self._decode, parameters, scene),
                chunks,
                no_sums(self.config.model.late, scene),
                self._layers,
                keep=keep,
            )
            for scene in scenes
        ]
        for first, chunk, *logits in zip(firsts, chunks, *runs, strict=True):
            yield ScoredChunk(first, self._score(tuple(logits), size), chunk.class_mask[0])

    def plan(self, scenes: tuple[Scene, ...], classes: int) -> tuple[int, bool]:
        """How many classes one chunk holds, and whether the maps of all of them are kept between the passes."""
        options = self.config.inference
        cells = sum(int(np.prod(scene.refined.shape[:3])) for scene in scenes)
        numbers = CHUNK_NUMBERS.get(jax.default_backend(), OTHER_CHUNK_NUMBERS)
        suiting = options.class_chunk or max(numbers // (cells * self.config.model.late.dim), 1)
        length = min(suiting, bucket(classes))
        filled = -(-classes // length) * length
        return length, kept_bytes(self.config.model, filled, cells) <= options.kept_megabytes * 2**20
