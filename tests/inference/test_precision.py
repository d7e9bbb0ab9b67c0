"""Weights in fewer bits: how far they are off, what they take, and what is left of the labels."""

import dataclasses

import jax
import numpy as np
import pytest

from dinov3seg_jax.config_files import override_inference
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.device.precision import at_precision, narrow, quantize
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.graph import bind, build, initialize
from dinov3seg_jax.models.parameters import parameter_bytes
from dinov3seg_jax.models.quantized import SCALE
from tests.models import tiny

NAMES = ("red circle", "grass", "a dog", "water", "sky")
RNG = np.random.default_rng(0)
# Smooth, so that most pixels are not on the border of two classes.
PICTURE = np.kron(RNG.integers(0, 256, (5, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)


@pytest.mark.parametrize("shape", [(30, 7), (3, 30, 7), (3, 3, 30, 7)])
def test_int8_is_at_most_half_a_step_of_its_own_channel_off(shape):
    array = RNG.standard_normal(shape, np.float32) * 10.0 ** RNG.integers(-3, 3, (*shape[:-2], 1, shape[-1]))
    array = array.astype(np.float32)
    values, scale = quantize(array)
    assert values.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == (*shape[:-2], 1, shape[-1])
    largest = np.abs(array).max(axis=-2, keepdims=True)
    error = np.abs(values * scale - array)
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    assert (error.max(axis=-2, keepdims=True) > largest / 2540).all(), "no finer than int8"
    np.testing.assert_array_equal(np.abs(values).max(axis=-2), 127)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_model_that_was_trained_with_another_devices_kernel(config, parameters, kernel):
    theirs = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=kernel))
    ours, _ = at_precision(theirs, parameters)
    assert ours.model == dataclasses.replace(config.model, attention="auto")
    assert at_precision(ours, parameters)[0] == ours


def test_channels_of_zeros_stay_zeros():
    values, scale = quantize(np.zeros((4, 2), np.float32))
    assert not (values * scale).any()


def test_the_token_table_has_a_scale_for_every_token():
    table = RNG.standard_normal((9, 4), np.float32) * np.arange(1, 10, dtype=np.float32)[:, None]
    narrowed = narrow({"text/token_embedding": table}, "int8")
    assert narrowed["text/token_embedding" + SCALE].shape == (9, 1)


@pytest.mark.slow
def test_the_model_gets_back_what_was_narrowed_in_stacks_of_blocks_too():
    config = tiny.changed("", spe="sam")
    graph, _ = build(config)
    parameters = initialize(config, jax.random.key(0))
    narrowed = narrow(parameters, "int8")
    rounded = {
        name: narrowed[name] * narrowed[name + SCALE] if name + SCALE in narrowed else value
        for name, value in parameters.items()
    }
    assert sum(name.endswith(SCALE) for name in narrowed) == sum(
        name.endswith(("/kernel", "token_embedding")) for name in parameters
    )
    images = RNG.random((1, 32, 32, 3), np.float32)
    run = tiny.compiled(lambda parameters: jax.tree.leaves(bind(graph, parameters).encode_image(images)))
    for found, expected, exact in zip(run(narrowed), run(rounded), run(parameters), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert abs(found - exact).max() > 1e-4


@pytest.mark.parametrize(("weights", "share"), [("bfloat16", 0.52), ("int8", 0.28)])
def test_what_matrices_take(config, weights, share):
    wide = {"text/token_embedding": np.ones((500, 64), np.float32), "a/kernel": np.ones((3, 256, 64), np.float32)}
    assert parameter_bytes(narrow(wide, weights)) < share * parameter_bytes(wide)


def at(config, **options):
    return dataclasses.replace(config, inference=dataclasses.replace(config.inference, **options))


@pytest.mark.parametrize(
    ("options", "least"),
    [
        pytest.param({"weights": "int8"}, 0.9, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16", "weights": "bfloat16"}, 0.85, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16", "weights": "int8"}, 0.85, marks=pytest.mark.slow),
    ],
)
def test_most_labels_stay(config, parameters, options, least):
    exact, rough = (
        Segmenter(at(config, mode="whole", **changed), parameters).segment(PICTURE, NAMES) for changed in ({}, options)
    )
    assert len(np.unique(exact.labels)) > 1
    assert (rough.labels == exact.labels).mean() >= least
    assert abs(rough.confidence - exact.confidence).max() > 0, "it is not the same model"


def test_the_arithmetic_is_the_models_own_unless_told_otherwise(config, parameters):
    trained = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    assert at_precision(trained, parameters)[0].model.dtype == "bfloat16"
    assert at_precision(at(trained, dtype="float32"), parameters)[0].model.dtype == "float32"
    assert at_precision(trained, parameters)[1] is parameters


@pytest.mark.parametrize("override", ["inference.weights=int4", "inference.dtype=float16"])
def test_types_that_are_not_there(config, override):
    with pytest.raises(UserError, match="Input should be|input should be"):
        override_inference(config, [override])
