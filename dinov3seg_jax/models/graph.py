"""A model as a graph and a flat dict of arrays (see `parameters`), and both as a model again."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.cafedino import CafeDino
from dinov3seg_jax.models.dinov3seg import SegmentationModel
from dinov3seg_jax.models.linear_head import LinearProbe
from dinov3seg_jax.models.low_rank import merge
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters
from dinov3seg_jax.models.quantized import join_scales


class FrozenBlocks(NamedTuple):
    """How many of the first blocks of a part are cut off from the backward pass."""

    vision: int = 0
    text: int = 0
    sam: int = 0


NONE_FROZEN = FrozenBlocks()
ALL_FROZEN = FrozenBlocks(sys.maxsize, sys.maxsize, sys.maxsize)


def build(config: ModelConfig, frozen_blocks: FrozenBlocks = NONE_FROZEN) -> tuple[nnx.GraphDef, AbstractParameters]:
    """Describe a model without allocating it.

    Args:
        config: of the model.
        frozen_blocks: ALL_FROZEN where no gradient is taken at all.
    """
    graph, described = _build(config, frozen_blocks)
    return graph, dict(described)


@functools.cache  # loading a model asks twice
def _build(config: ModelConfig, frozen_blocks: FrozenBlocks) -> tuple[nnx.GraphDef, AbstractParameters]:
    def create() -> nnx.Module:
        model = _module(config)(config, rngs=any_values())
        model.frozen_vision_blocks, model.frozen_text_blocks, model.frozen_sam_blocks = frozen_blocks
        return model

    return describe(create)


class _OneKey(nnx.RngStream):
    """Always the same key, without a count: to trace the counting takes a time that grows with its square."""

    def __call__(self) -> Array:
        return self.key[...]


def any_values() -> nnx.Rngs:
    """For a model that is only described, whose values do not matter."""
    rngs = nnx.Rngs(0)
    setattr(rngs, "default", _OneKey(jax.random.key(0), tag="default"))  # noqa: B010
    return rngs


def describe(create: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, AbstractParameters]:
    """Describe any module without allocating it."""
    graph, state = nnx.split(nnx.eval_shape(create))
    return graph, flatten(state)


def initialize(config: ModelConfig, key: Array) -> Parameters:
    """Draw all parameters; to be called under `jax.jit` with output shardings."""
    return flatten(nnx.state(_module(config)(config, rngs=nnx.Rngs(key))))


def bind(graph: nnx.GraphDef, parameters: Parameters) -> Any:
    """Put parameters back into the model; they may be narrowed (`inference.device.precision`) or have `low_rank`s."""
    flat: Any = {_path(name): value for name, value in join_scales(merge(parameters)).items()}
    return nnx.merge(graph, nnx.from_flat_state(flat))


def flatten(state: nnx.State) -> dict[str, Any]:
    """One entry per variable, an array or its description, named by its path."""
    return {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _module(config: ModelConfig) -> type[SegmentationModel] | type[LinearProbe] | type[CafeDino]:
    if config.cafedino.layers:
        return CafeDino
    return LinearProbe if config.linear.classes else SegmentationModel


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdecimal() else part for part in name.split("/"))
