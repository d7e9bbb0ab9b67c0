"""A model small enough to compile in seconds, and ways to run it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3seg_jax.config import (
    DecoderConfig,
    EarlyRefinementConfig,
    LateRefinementConfig,
    ModelConfig,
    SamConfig,
    TextConfig,
    VisionConfig,
)

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # most time is compiling

TINY = ModelConfig(
    vision=VisionConfig(dim=32, depth=2, heads=2, layerscale_init=1.0, head_blocks=1),
    text=TextConfig(dim=16, depth=2, heads=2, vocab_size=64, context_length=8),
    sam=SamConfig(dim=16, depth=2, heads=2, window=3, global_blocks=(1,), neck_dim=8, image_size=64),
    early=EarlyRefinementConfig(dim=16, heads=2, image_stride=4, window_ratio=0.3),
    spe="vision",
    spe_dims=(16, 8),
    late=LateRefinementConfig(layers=1, dim=16, heads=2, window=3),
    decoder=DecoderConfig(dims=(16, 16), guidance_dims=(8, 8)),
)


def changed(part: str, **options: Any) -> ModelConfig:
    """TINY with options of one part changed, such as "late"; what the part does not know is the model's."""
    inner = {name: options.pop(name) for name in list(options) if part and hasattr(getattr(TINY, part), name)}
    return dataclasses.replace(
        TINY, **options, **({part: dataclasses.replace(getattr(TINY, part), **inner)} if part else {})
    )


def shapes_of(create: Callable[[nnx.Rngs], Any], call: Callable[[Any], Any]) -> Any:
    """What `call(create(rngs))` would return, as shapes. Only the parameters are drawn: tracing that takes longer."""
    graph, state = nnx.split(create(nnx.Rngs(0)))
    return jax.eval_shape(lambda state: call(nnx.merge(graph, state)), state)


def random(seed: int, *shape: int) -> np.ndarray:
    """Normal float32 noise."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, quick to compile."""
    return jax.jit(function, compiler_options=QUICK if jax.default_backend() == "cpu" else None)


def lively(parameters: dict[str, jax.Array], seed: int = 0) -> dict[str, jax.Array]:
    """Parameters moved off their initial zeros and ones, so that no path is dead by initialisation."""
    generator = np.random.default_rng(seed)
    return {
        name: value if name.endswith("periods") else jnp.asarray(value + 0.1 * generator.standard_normal(value.shape))
        for name, value in parameters.items()
    }
