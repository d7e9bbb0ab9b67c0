"""Scores of a class list, a few classes at a time (§4): memory and compiled programs know nothing of its length."""

import functools
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


def deal(
    lists: Int[np.ndarray, "b k"], length: int, copies: int
) -> tuple[Int[np.ndarray, "b own"], Bool[np.ndarray, "b own"]]:
    """Each row's own part of its list, where `copies` rows in succession have the same: chunk by chunk in turn.

    Args:
        lists: of classes.
        length: of a chunk.
        copies: how many rows share a list.

    Returns:
        The parts, all of so many whole chunks that the list is in them; and which of their entries do not only fill
        them up. What fills them up is the last class again.
    """
    b, k = lists.shape
    rounds = -(-k // (length * copies))
    places = np.arange(rounds * copies * length).reshape(rounds, copies, length).swapaxes(0, 1).reshape(copies, -1)
    places = np.tile(places, (b // copies, 1))
    return np.take_along_axis(lists, np.minimum(places, k - 1), axis=1), places < k


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
        self._for_copies = functools.cache(partial(head_programs, config, mesh))

    def __call__(
        self,
        parameters: Parameters,
        images: UInt8[np.ndarray | Array, "b h w 3"],
        text: Float[np.ndarray, "t d2"],
        copies: int = 1,
    ) -> Iterator[ScoredChunk]:
        """Score the classes everywhere.

        Args:
            parameters: of the model.
            images: RGB, already resized; the sides are multiples of the patch size.
            text: class embeddings, the same for all images.
            copies: how many devices have the same image, one in succession to the other, and share its classes out.
        """
        scenes = self.programs.start(parameters, images)
        height, width = images.shape[1:3]
        lists = self._rank(scenes, text, len(images))
        classes = len(text) if lists is None else lists.shape[1]
        plan = self.plan(scenes, classes, copies)
        if copies > 1 and lists is None:
            lists = np.broadcast_to(np.arange(classes), (len(images), classes))
        yield from self.score_scenes(parameters, scenes, (height, width), text, *plan, lists, copies)

    def score_scenes(
        self,
        parameters: Parameters,
        scenes: tuple[Scene, ...],
        size: tuple[int, int],
        text: Float[np.ndarray, "t d2"],
        length: int,
        keep: bool,
        lists: Int[np.ndarray, "b k"] | None = None,
        copies: int = 1,
    ) -> Iterator[ScoredChunk]:
        """The same from `prepare_scenes` of images of that size on.

        `length` and `keep` are those of `plan`; `lists` are the classes that each image keeps, if not all do.
        """
        classes = len(text) if lists is None else lists.shape[1]
        programs = self.programs
        if copies > 1:
            assert lists is not None
            programs = self._for_copies(copies)
            lists, real = deal(lists, length, copies)
            filled, choosable = text[lists], np.ones(lists.shape[1], bool)
        else:
            rows = text[None] if lists is None else text[lists]
            filled = np.pad(rows, ((0, 0), (0, -classes % length), (0, 0)))
            choosable = np.arange(filled.shape[1]) < classes
            real = np.broadcast_to(choosable, filled.shape[:2])
        firsts = range(0, filled.shape[1], length)

        def chunks_of(scene: Scene) -> list[Chunk]:
            views = 1 if lists is None else len(scene.refined) // len(filled)
            parts = [np.repeat(filled[:, first : first + length], views, axis=0) for first in firsts]
            masks = [np.repeat(real[:, first : first + length], views, axis=0) for first in firsts]
            chunks = [Chunk(*jax.device_put(pair)) for pair in zip(parts, masks, strict=True)]
            if not (longest := self.config.model.late.pad_classes):
                return chunks
            begins = np.repeat(
                np.arange(len(filled)) % copies == 0, views
            )  # the list, of which the first chunk has all
            missing = (begins * max(longest - classes, 0)).astype(np.float32)
            counts = [missing, *[np.zeros_like(missing)] * (len(chunks) - 1)]
            return [chunk._replace(padding=jax.device_put(own)) for chunk, own in zip(chunks, counts, strict=True)]

        runs = [
            decode_chunks(
                partial(programs.collect, parameters, scene),
                partial(programs.decode, parameters, scene),
                chunks_of(scene),
                no_sums(self.config.model.late, scene),
                self._layers,
                keep=keep,
                at_once=self._at_once,
            )
            for scene in scenes
        ]
        for first, *logits in zip(firsts, *runs, strict=True):
            mask = jax.device_put(choosable[first : first + length])  # which, unlike jnp.asarray, compiles nothing
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

    def plan(self, scenes: tuple[Scene, ...], classes: int, copies: int = 1) -> tuple[int, bool]:
        """How many classes one chunk holds, and whether the maps of all of them are kept between the passes.

        Both are decided by what one device has to hold. Devices that share a list out have chunks as long as one has,
        so that their sums are the same.
        """
        cells = sum(int(np.prod(scene.refined.shape[:3])) for scene in scenes) // self._devices
        return plan_chunks(self.config, cells, classes, jax.default_backend(), copies)


def plan_chunks(config: Config, cells: int, classes: int, platform: str, copies: int = 1) -> tuple[int, bool]:
    """See `ClassChunks.plan`.

    Args:
        config: of the model, and how it is used.
        cells: of the grids of all views on one device.
        classes: of the list.
        platform: that it runs on, as in "tpu".
        copies: among how many devices the list is shared out.
    """
    options = config.inference
    suiting = max(CHUNK_NUMBERS.get(platform, OTHER_CHUNK_NUMBERS) // (cells * config.model.late.dim), 1)
    if classes <= 2 * suiting:  # rather one chunk than a second that is mostly filling
        suiting = 2 * suiting
    length = min(options.class_chunk or suiting, bucket(classes))
    filled = -(-classes // (length * copies)) * length
    return length, kept_bytes(config.model, filled, cells) <= options.kept_megabytes * 2**20
