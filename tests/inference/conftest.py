"""A model small enough to compile in seconds, with random parameters."""

import dataclasses
import os

import jax
import pytest

from dinov3seg_jax.config import (
    Config,
    DecoderConfig,
    EarlyRefinementConfig,
    InferenceConfig,
    LateRefinementConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
)
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.parameters import Parameters, initialize

# Nearly all the time goes into compiling. JAX reads this when it first touches a device, which no import does.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

MODEL = ModelConfig(
    vision=VisionConfig(dim=32, depth=1, heads=2, layerscale_init=1.0, head_blocks=0),
    text=TextConfig(dim=32, depth=1, heads=2),
    early=EarlyRefinementConfig(enabled=False),
    spe="vision",
    spe_dims=(16, 16),
    late=LateRefinementConfig(layers=1, dim=16, heads=2, window=2),
    decoder=DecoderConfig(dims=(16, 16), guidance_dims=(8, 8)),
)


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return MODEL


@pytest.fixture(scope="session")
def parameters() -> Parameters:
    drawn = initialize(MODEL, jax.random.key(0))
    # The decoder's fresh logits are nearly equal for all classes; spread out, no rounding error changes a label.
    return drawn | {"decoder/head/kernel": 20 * drawn["decoder/head/kernel"]}


@pytest.fixture(scope="session")
def config() -> Config:
    return dataclasses.replace(Config(model=MODEL), inference=InferenceConfig(image_size=48, window=32, stride=16))


@pytest.fixture(scope="session")
def model(config: Config, parameters: Parameters) -> Segmenter:
    return Segmenter(config, parameters)
