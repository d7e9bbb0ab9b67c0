"""Late refinement and decoder for some of the classes at a time (§4, §5), in memory that a long list does not raise.

Classes meet nowhere but in the class blocks, and there linear attention knows of the others only sums over all of them
(`ClassSums`). So one pass over the chunks of a list collects the sums of a class block, the next pass goes through that
block with them and collects the next one's, and the last pass decodes. Between two passes the maps of a chunk are kept,
or computed anew from the correlation: that is 1.7 times the arithmetic for two layers, and no memory per class.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dinov3seg_jax.config import LateRefinementConfig, ModelConfig
from dinov3seg_jax.models.scene import Chunk, ClassSums, ImageFeatures, Scene, Sums

if TYPE_CHECKING:
    from dinov3seg_jax.models.dinov3seg import SegmentationModel  # whose Flax takes a while to import

Task = TypeVar("Task")
Result = TypeVar("Result")


class Collect(Protocol):
    """`collect` with its model and scene; `keep` False returns None in place of the maps."""

    def __call__(
        self, chunk: Chunk, sums: Sums, kept: Array | None, total: ClassSums, *, keep: bool
    ) -> tuple[Array | None, ClassSums]: ...


class Decode(Protocol):
    """`decode` with its model and scene."""

    def __call__(self, chunk: Chunk, sums: Sums, kept: Array | None) -> Float[Array, "b t h4 w4"]: ...


def can_chunk(config: ModelConfig) -> bool:
    """Whether sums are all that the classes share: so with linear attention, but not where a view rejects classes."""
    late = config.late
    return not late.enabled or (late.class_attention == "linear" and not late.max_classes)


def prepare_scene(
    model: "SegmentationModel", images: Float[Array, "b height width 3"], features: ImageFeatures
) -> Scene:
    """Everything that is computed once, however many classes there are."""
    refined = model.refine_early(images, features.patches)
    guidance = model.project_guidance(features.prior, refined.shape[1], refined.shape[2])
    blocks = model.late.spatial if model.config.late.enabled else ()
    if guidance is None:
        return Scene(refined, (None,) * len(blocks), None)
    halves = tuple(block.project_guidance(guidance.appearance) for block in blocks)
    return Scene(refined, halves, model.decoder.project_guidance(guidance.decoder))


def collect(
    model: "SegmentationModel",
    scene: Scene,
    chunk: Chunk,
    sums: Sums,
    kept: Float[Array, "b t h w d"] | None,
    total: ClassSums,
) -> tuple[Float[Array, "b t h w d"], ClassSums]:
    """What the next class block has to know of a chunk.

    Args:
        model: one that `can_chunk`.
        scene: of `prepare_scene`.
        chunk: some of the classes.
        sums: of the class blocks that are behind them.
        kept: what this returned for the chunk in the pass before; None to compute it anew, or in the first pass.
        total: the sums of the chunks before this one in this pass; at first `no_sums`.

    Returns:
        The chunk's maps as they enter the class block, and its sums added to `total`.
    """
    maps = _advance(model, scene, chunk, sums, kept)
    block = model.late.classes[len(sums)]
    own = block.sum_up(maps, _project_text(model, chunk), chunk.class_mask)
    if chunk.padding is not None:
        own = block.add_padding(own, chunk.padding)
    return maps, ClassSums(total.products + own.products, total.keys + own.keys)


def decode(
    model: "SegmentationModel", scene: Scene, chunk: Chunk, sums: Sums, kept: Float[Array, "b t h w d"] | None
) -> Float[Array, "b t h4 w4"]:
    """The logits of a chunk, once the sums of every class block are known; see `collect`."""
    logits = model.decoder.decode(_advance(model, scene, chunk, sums, kept), scene.guided)
    if model.config.decoder.correlation_skip:
        logits = logits + model.correlation_skip(model.correlate(scene.refined, chunk.text), *logits.shape[2:])
    return logits


def no_sums(config: LateRefinementConfig, scene: Scene) -> ClassSums:
    """The sums over no class at all."""
    b, h, w, _ = scene.refined.shape
    shape = (b, h // config.pooling, w // config.pooling, config.heads, config.dim // config.heads)
    return ClassSums(*jax.device_put((np.zeros((*shape, shape[-1]), np.float32), np.zeros(shape, np.float32))))


def decode_chunks(
    collect: Collect,
    decode: Decode,
    chunks: Sequence[Chunk],
    nothing: ClassSums,
    layers: int,
    *,
    keep: bool,
    at_once: int = 1,
) -> Iterator[Float[Array, "b t h4 w4"]]:
    """The logits of one chunk after the other.

    Args:
        collect, decode: the functions above, bound to a model and a scene and compiled.
        chunks: the class list.
        nothing: `no_sums`.
        layers: how many class blocks there are.
        keep: hold the maps of all classes from one pass to the next.
        at_once: chunks that run at the same time, each on a thread: for a CPU, whose cores one of these programs does
            not fill.
    """
    sums: Sums = ()
    kept: list[Array | None] = [None] * len(chunks)
    places = range(len(chunks))

    def collect_one(total: ClassSums, place: int) -> ClassSums:
        kept[place], total = collect(chunks[place], sums, kept[place], total, keep=keep)
        return jax.block_until_ready(total)  # else the memory of many chunks is claimed ahead

    def decode_one(place: int) -> Array:
        logits = jax.block_until_ready(decode(chunks[place], sums, kept[place]))
        kept[place] = None
        return logits

    for _ in range(layers):
        if at_once == 1:
            total = functools.reduce(collect_one, places, nothing)
        else:
            total = _add(_in_order(functools.partial(collect_one, nothing), places, at_once))
        sums = (*sums, total)
    yield from _in_order(decode_one, places, at_once)


def _add(parts: Iterator[ClassSums]) -> ClassSums:
    """In their order, so that the result does not depend on the threads; on the host, where it compiles nothing."""
    total = [np.array(array) for array in next(parts)]
    for part in parts:
        for so_far, array in zip(total, part, strict=True):
            so_far += np.asarray(array)
    return ClassSums(*jax.device_put(total))


def _in_order(run: Callable[[Task], Result], tasks: Iterable[Task], at_once: int) -> Iterator[Result]:
    """The results of some tasks in their order, while up to `at_once` of them run."""
    if at_once == 1:
        yield from map(run, tasks)
        return
    with ThreadPoolExecutor(at_once) as threads:
        running: deque[Future[Result]] = deque()
        for task in tasks:
            running.append(threads.submit(run, task))
            if len(running) > at_once:  # one waits, so that no thread does
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def kept_bytes(config: ModelConfig, classes: int, cells: int) -> int:
    """What the maps of all classes take between two passes; `cells` of the grids of all images together."""
    return classes * cells * config.late.dim * jnp.dtype(config.class_maps_dtype).itemsize if config.late.enabled else 0


def _advance(model: "SegmentationModel", scene: Scene, chunk: Chunk, sums: Sums, kept: Array | None) -> Array:
    """Maps of the chunk behind the class blocks whose sums are known and, if there is one, the spatial block after."""
    maps = model.embed_correlation(model.correlate(scene.refined, chunk.text)) if kept is None else kept
    if not model.config.late.enabled:
        return maps
    late, projected = model.late, _project_text(model, chunk)
    if kept is None:
        maps = late.spatial[0].refine(maps, scene.halves[0])
    for layer in range(0 if kept is None else len(sums) - 1, len(sums)):
        maps = late.classes[layer](maps, projected, sums=sums[layer])
        if layer + 1 < len(late.spatial):
            maps = late.spatial[layer + 1].refine(maps, scene.halves[layer + 1])
    return maps


def _project_text(model: "SegmentationModel", chunk: Chunk) -> Array:
    return jax.nn.relu(model.project_text(chunk.text))
