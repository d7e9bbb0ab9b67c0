"""Scores of a class list, a few classes at a time (§4): memory and compiled programs know nothing of its length."""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from dinov3seg_jax.config import Config
from dinov3seg_jax.inference.classes.programs import head_programs
from dinov3seg_jax.inference.device.buckets import bucket
from dinov3seg_jax.models.chunked import decode_chunks, kept_bytes, no_sums
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.models.scene import Chunk, Scene

# Numbers in the maps of one chunk. On a CPU 2 classes of 40 x 40 cells and 128 channels: few enough for its caches.
CHUNK_NUMBERS = {"cpu": 2 * 40 * 40 * 128}
OTHER_CHUNK_NUMBERS = 256 * 24 * 24 * 128
MOST_THREADS = 4  # on a CPU, each with the maps of a chunk
RANKED_TOGETHER = 128  # classes whose likeness to the pictures is found at once


class ScoredChunk(NamedTuple):
    """Some of the classes of a list."""

    first: int  # index of the first of them
    scores: Float[Array, "b t h w"]  # in [0, 1]; see `local_global.score_classes`
    class_mask: Bool[Array, " t"]  # False for entries that fill the last chunk up
    lists: Int[np.ndarray, "b k"] | None = None  # what indices mean for each picture, if most classes were rejected


def gather_scores(chunks: Iterable[ScoredChunk], pictures: int, classes: int) -> Float[np.ndarray, "b t h w"]:
    """Scores of a whole list, on the host; a class that was rejected in a picture has 0 there."""
    found = np.zeros(0, np.float32)
    for first, scores, _, lists in chunks:
        part = np.asarray(scores, np.float32)
        if lists is None and part.shape[1] >= classes:
            return part[:, :classes]
        if not found.size:
            found = np.zeros((pictures, classes, *part.shape[2:]), np.float32)
        meant = np.broadcast_to(np.arange(classes), (len(part), classes)) if lists is None else lists
        for place, own in enumerate(part):
            some = meant[place][first : first + len(own)]
            found[place, some] = own[: len(some)]
    return found


class ClassChunks:
    """Scores the classes of a list chunk by chunk, with the same result as `local_global.score_classes`.

    Programs are compiled for each size and number of pictures, whatever the list: its chunks are all equally long.
    """

    def __init__(self, config: Config, mesh: Mesh | None = None):
        """`config.model` is one that `models.chunked.can_chunk`; the devices of `mesh` share the pictures out."""
        self.config = config
        self._devices = 1 if mesh is None else mesh.size
        self._layers = config.model.late.layers if config.model.late.enabled else 0
        # Devices that share pictures out work at the same time anyway.
        self._at_once = min(os.cpu_count() or 1, MOST_THREADS) if mesh is None and jax.default_backend() == "cpu" else 1
        self.programs = head_programs(config, mesh)

    def __call__(
        self, parameters: Parameters, images: UInt8[np.ndarray | Array, "b h w 3"], text: Float[np.ndarray, "t d2"]
    ) -> Iterator[ScoredChunk]:
        """Score the classes everywhere.

        Args:
            parameters: of the model.
            images: RGB, already resized; the sides are multiples of the patch size.
            text: class embeddings, the same for all images.
        """
        scenes = self.programs.start(parameters, images)
        height, width = images.shape[1:3]
        lists = self._rank(scenes, text, len(images))
        classes = len(text) if lists is None else lists.shape[1]
        yield from self.score_scenes(parameters, scenes, (height, width), text, *self.plan(scenes, classes), lists)

    def score_scenes(
        self,
        parameters: Parameters,
        scenes: tuple[Scene, ...],
        size: tuple[int, int],
        text: Float[np.ndarray, "t d2"],
        length: int,
        keep: bool,
        lists: Int[np.ndarray, "b k"] | None = None,
    ) -> Iterator[ScoredChunk]:
        """The same from `prepare_scenes` of images of that size on.

        `length` and `keep` are those of `plan`; `lists` are the classes that each image keeps, if not all do.
        """
        rows = text[None] if lists is None else text[lists]
        classes = rows.shape[1]
        filled = np.pad(rows, ((0, 0), (0, -classes % length), (0, 0)))
        real = np.arange(filled.shape[1]) < classes
        firsts = range(0, filled.shape[1], length)

        def chunks_of(scene: Scene) -> list[Chunk]:
            views = 1 if lists is None else len(scene.refined) // len(rows)
            parts = [np.repeat(filled[:, first : first + length], views, axis=0) for first in firsts]
            masks = [np.broadcast_to(real[first : first + length], (views * len(rows), length)) for first in firsts]
            chunks = [Chunk(*jax.device_put(pair)) for pair in zip(parts, masks, strict=True)]
            if not (longest := self.config.model.late.pad_classes):
                return chunks
            missing = [max(longest - classes, 0), *[0] * (len(chunks) - 1)]  # once in a list
            counts = [np.full(len(part), count, np.float32) for part, count in zip(parts, missing, strict=True)]
            return [chunk._replace(padding=jax.device_put(own)) for chunk, own in zip(chunks, counts, strict=True)]

        runs = [
            decode_chunks(
                partial(self.programs.collect, parameters, scene),
                partial(self.programs.decode, parameters, scene),
                chunks_of(scene),
                no_sums(self.config.model.late, scene),
                self._layers,
                keep=keep,
                at_once=self._at_once,
            )
            for scene in scenes
        ]
        for first, *logits in zip(firsts, *runs, strict=True):
            mask = jax.device_put(real[first : first + length])  # which, unlike jnp.asarray, compiles nothing
            scores = self.programs.blend(*logits, size=size) if len(logits) > 1 else logits[0]
            yield ScoredChunk(first, scores, mask, lists)

    def _rank(
        self, scenes: tuple[Scene, ...], text: Float[np.ndarray, "t d2"], pictures: int
    ) -> Int[np.ndarray, "b k"] | None:
        """The `best_classes` whose greatest correlation anywhere in a picture is highest, in the order of the list."""
        kept = self.config.inference.best_classes
        if not kept or kept >= len(text):
            return None
        filled = np.pad(text, ((0, -len(text) % RANKED_TOGETHER), (0, 0)))
        parts = [jnp.asarray(part[None]) for part in np.split(filled, len(filled) // RANKED_TOGETHER)]
        resemble = self.programs.resemble
        of_scenes = [
            np.concatenate([resemble(scene, part) for part in parts], axis=1).reshape(pictures, -1, len(filled))
            for scene in scenes
        ]
        greatest = np.concatenate(of_scenes, axis=1).max(axis=1)[:, : len(text)]
        return np.sort(np.argsort(-greatest, axis=1, kind="stable")[:, :kept], axis=1)

    def plan(self, scenes: tuple[Scene, ...], classes: int) -> tuple[int, bool]:
        """How many classes one chunk holds, and whether the maps of all of them are kept between the passes.

        Both are decided by what one device has to hold.
        """
        cells = sum(int(np.prod(scene.refined.shape[:3])) for scene in scenes) // self._devices
        return plan_chunks(self.config, cells, classes, jax.default_backend())


def plan_chunks(config: Config, cells: int, classes: int, platform: str) -> tuple[int, bool]:
    """See `ClassChunks.plan`.

    Args:
        config: of the model, and how it is used.
        cells: of the grids of all views on one device.
        classes: of the list.
        platform: that it runs on, as in "tpu".
    """
    options = config.inference
    suiting = max(CHUNK_NUMBERS.get(platform, OTHER_CHUNK_NUMBERS) // (cells * config.model.late.dim), 1)
    if classes <= 2 * suiting:  # rather one chunk than a second that is mostly filling
        suiting = 2 * suiting
    length = min(options.class_chunk or suiting, bucket(classes))
    filled = -(-classes // length) * length
    return length, kept_bytes(config.model, filled, cells) <= options.kept_megabytes * 2**20
