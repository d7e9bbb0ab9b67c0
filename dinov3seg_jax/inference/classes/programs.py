"""The programs that score a class list chunk by chunk, compiled for each size and number of pictures (§4)."""

from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import Config
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.sharing import add_up, on_own_pictures
from dinov3seg_jax.inference.views.local_global import prepare_scenes, score_logits
from dinov3seg_jax.models import chunked
from dinov3seg_jax.models.bound import bind_frozen
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.models.scene import Chunk, ClassSums, GuidedHalf, Scene, Sums

for kind in (Scene, Chunk, GuidedHalf, ClassSums):  # so that programs that take them can be kept
    jax.export.register_namedtuple_serialization(kind, serialized_name=kind.__name__)


class HeadPrograms(NamedTuple):
    """Functions, jitted or not, in the order in which they run."""

    start: Any  # (parameters, images) -> what of the pictures depends on no class, one `Scene` for each kind of view
    resemble: Any  # (scene, text) -> the greatest correlation of each class anywhere in a picture
    collect: Any  # (parameters, scene, chunk, sums, kept, total, keep) -> maps of a chunk and sums over its classes
    decode: Any  # (parameters, scene, chunk, sums, kept) -> logits of a chunk, or scores where nothing is blended
    blend: Any  # (local, whole, size) -> scores of a chunk from the logits of both kinds of view


def head_programs(config: Config, mesh: Mesh | None, copies: int = 1) -> HeadPrograms:
    """Describe the programs; each is compiled when it is first called.

    Args:
        config: its `model` is one that `models.chunked.can_chunk`.
        mesh: of the devices that share the pictures out.
        copies: among how many of them the class list of each picture is shared out.
    """
    kept_on_disk = traced_once((config.model, config.inference))
    static = {"collect": ("keep",), "blend": ("size",)}

    def program(name: str, function: Any, common: tuple[str, ...]) -> Any:
        kept = function if name == "resemble" else kept_on_disk(function)
        if name == "collect" and mesh is not None and copies > 1:
            kept = _added_up(kept, copies, mesh.size)
        return jit(on_own_pictures(mesh, common)(kept), static_argnames=static.get(name, ()))

    functions, same = head_functions(config)._asdict(), common_arguments(config, copies)._asdict()
    return HeadPrograms(*(program(name, functions[name], same[name]) for name in HeadPrograms._fields))


def _added_up(collect: Any, copies: int, devices: int) -> Any:
    """`collect`, whose sums are over the classes of all devices that share a list out."""

    @wraps(collect)
    def run(parameters: Any, scene: Any, chunk: Any, sums: Any, kept: Any, total: Any, *, keep: bool) -> Any:
        nothing = jax.tree.map(jnp.zeros_like, total)
        maps, own = collect(parameters, scene, chunk, sums, kept, nothing, keep=keep)
        return maps, add_up(total, own, copies, devices)

    return run


def common_arguments(config: Config, copies: int = 1) -> HeadPrograms:
    """For each program the arguments that are the same for all pictures."""
    # Where classes are rejected, every picture has a list of its own, and where devices share a list, every copy.
    chunk = () if config.inference.best_classes or copies > 1 else ("chunk",)
    return HeadPrograms(("parameters",), ("text",), ("parameters", *chunk), ("parameters", *chunk), ())


def head_functions(config: Config) -> HeadPrograms:
    """The functions that the programs are compiled from."""
    options = config.inference
    # CAT-Seg's views are blended by the segmenter.
    blends = options.fusion == "logits" and (options.mode != "whole" or options.resize == "catseg")

    def start(parameters: Parameters, images: UInt8[Array, "b h w 3"]) -> tuple[Scene, ...]:
        pixels = images.astype(jnp.float32) / 255
        return prepare_scenes(bind_frozen(config.model, parameters), pixels, config.inference)

    def resemble(scene: Scene, text: Float[Array, "1 t d2"]) -> Float[Array, "b t"]:
        from dinov3seg_jax.models.correlation import correlate  # here, because importing Flax takes a while
        from dinov3seg_jax.models.towers import TOWERS

        halves = TOWERS[config.model.towers].halves
        return correlate(scene.refined, text, config.model.correlation, halves).max(axis=(2, 3, 4))

    def collect(
        parameters: Parameters,
        scene: Scene,
        chunk: Chunk,
        sums: Sums,
        kept: Array | None,
        total: ClassSums,
        *,
        keep: bool,
    ) -> tuple[Array | None, ClassSums]:
        maps, total = chunked.collect(bind_frozen(config.model, parameters), scene, chunk, sums, kept, total)
        return maps if keep else None, total

    def decode(
        parameters: Parameters, scene: Scene, chunk: Chunk, sums: Sums, kept: Array | None
    ) -> Float[Array, "b t h w"]:
        logits = chunked.decode(bind_frozen(config.model, parameters), scene, chunk, sums, kept)
        return logits if blends else jax.nn.sigmoid(logits)

    def blend(local: Array, whole: Array, *, size: tuple[int, int]) -> Float[Array, "b t h w"]:
        return score_logits(local, whole, size, config.inference, config.model.vision.patch_size)

    return HeadPrograms(start, resemble, collect, decode, blend)
