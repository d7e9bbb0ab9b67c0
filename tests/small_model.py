"""A model small enough to compile in seconds, with random parameters."""

import dataclasses

import jax
import pytest

from dinov3seg_jax.config import Config, InferenceConfig, ModelConfig
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.models.parameters import Parameters
from tests.tiny import MODEL


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


@pytest.fixture
def compiled():
    """Grows by one for every program that is compiled while the test runs."""
    programs = []

    def listen(event, seconds, **of):
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(of)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield programs
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def tiled(config: Config, parameters: Parameters) -> Segmenter:
    """The same model for pictures that are cut into tiles."""
    inference = dataclasses.replace(config.inference, resize="tiled")
    return Segmenter(dataclasses.replace(config, inference=inference), parameters)
