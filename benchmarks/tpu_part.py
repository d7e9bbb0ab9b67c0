"""A part of the model, forwards and backwards, compiled for a small slice of TPUs: its memory traffic and least time.

    python -m benchmarks.tpu_part class v5e:2x2 [--classes 171] [--config.model.late.class_kernel=xla ...]

Each chip has one crop of `configs/pod.py`. No TPU is needed, but libtpu; one or two minutes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.costs.hlo import Program
from dinov3seg_jax.costs.roofline import bound
from dinov3seg_jax.costs.topology import compile_for, describe_bound, topology_mesh
from dinov3seg_jax.errors import run_command
from dinov3seg_jax.models.decoder import Decoder
from dinov3seg_jax.models.early_refinement import EarlyRefinement
from dinov3seg_jax.models.late_refinement import ClassRefinementBlock, SpatialRefinementBlock
from dinov3seg_jax.training.chips import find_chip
from dinov3seg_jax.training.sharding import batch_sharding, on_mesh, replicated

GRID = 24  # cells along the side of a crop of 384

Shape = tuple[int, ...]
# How it is made, and the shapes of what it gets for one example: a map, and guidance.
Part = tuple[Callable[[nnx.Rngs], nnx.Module], Shape, list[Shape]]


def main() -> None:
    """Compile, and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("topology", help="a slice, as in v5e:2x2")
    parser.add_argument("--classes", type=int, default=171)
    parser.add_argument("--text", type=Path, help="where the compiled program goes")
    options, overrides = parser.parse_known_args()
    config = load_config("pod", [word.removeprefix("--config.") for word in overrides])
    mesh = topology_mesh(config, options.topology)
    _, text = compile_for(options.topology, trace(options.part, config.model, options.classes, mesh), "the part", "")
    if options.text:
        options.text.write_text(text)
    program = Program(text, [device.coords for device in mesh.devices.flat])
    traffic = program.traffic()
    chip = find_chip(mesh.devices.flat[0].device_kind) or parser.error("the figures of this chip are not known")
    print(f"memory traffic {traffic.memory / 1e9:.2f} GB, {traffic.memory / chip.bandwidth * 1e3:.2f} ms")
    print(describe_bound(bound(program, chip)))


def trace(name: str, model: ModelConfig, classes: int, mesh: Mesh) -> Any:
    """The part's value and gradients."""
    create, of_map, of_guidance = PARTS[name](model, classes)
    graph, parameters = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))

    def of_chips(shape: Shape) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((mesh.size, *shape), model.dtype)

    x = of_chips(of_map)
    guidance = tuple(of_chips(shape) for shape in of_guidance)

    def call(parameters: Any, x: Any, guidance: Any) -> Any:
        return nnx.merge(graph, parameters)(x, guidance if len(guidance) > 1 else guidance[0])

    def both(change: Any, *given: Any) -> Any:
        out, pull = jax.vjp(call, *given)
        return out, pull(change)

    change = jax.eval_shape(call, parameters, x, guidance)
    at = (batch_sharding(mesh), replicated(mesh), batch_sharding(mesh), batch_sharding(mesh))
    return jax.jit(on_mesh(both, mesh), in_shardings=at).trace(change, parameters, x, guidance)


def _maps(model: ModelConfig, classes: int) -> Shape:
    return classes, GRID, GRID, model.late.dim


def _class(model: ModelConfig, classes: int) -> Part:
    late, dtype = model.late, jnp.dtype(model.dtype)
    width = late.text_dim or late.dim

    def create(rngs: nnx.Rngs) -> nnx.Module:
        return ClassRefinementBlock(late, width, dtype=dtype, rngs=rngs)

    return create, _maps(model, classes), [(classes, width)]


def _spatial(model: ModelConfig, classes: int) -> Part:
    late, dtype = model.late, jnp.dtype(model.dtype)
    width = late.appearance_dim or late.dim

    def create(rngs: nnx.Rngs) -> nnx.Module:
        return SpatialRefinementBlock(late, width, dtype=dtype, rngs=rngs)

    return create, _maps(model, classes), [(GRID, GRID, width)]


def _decoder(model: ModelConfig, classes: int) -> Part:
    dtype, widths = jnp.dtype(model.dtype), model.decoder.guidance_dims
    shapes: list[Shape] = [(GRID * scale, GRID * scale, width) for scale, width in zip((2, 4), widths, strict=True)]

    def create(rngs: nnx.Rngs) -> nnx.Module:
        return Decoder(model.late.dim, model.decoder, guided=True, dtype=dtype, rngs=rngs)

    return create, _maps(model, classes), shapes


def _early(model: ModelConfig, classes: int) -> Part:
    side, width = GRID * model.vision.patch_size, model.vision.dim

    def create(rngs: nnx.Rngs) -> nnx.Module:
        return EarlyRefinement(model.early, dtype=jnp.dtype(model.dtype), rngs=rngs)

    return create, (side, side, 3), [(GRID, GRID, width)]


PARTS = {"class": _class, "spatial": _spatial, "decoder": _decoder, "early": _early}


if __name__ == "__main__":
    run_command(main)
