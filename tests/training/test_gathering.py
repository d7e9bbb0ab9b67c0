"""What is gathered once a step: how much, and in which type. That training stays the same: `test_several_devices`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dinov3seg_jax.config import Config
from dinov3seg_jax.models.graph import bind, build, initialize
from dinov3seg_jax.training.finetune import join, partition
from dinov3seg_jax.training.gathering import CAST, gathered, gathered_bytes
from dinov3seg_jax.training.program import describe_step
from dinov3seg_jax.training.sharding import described_mesh, parameter_shardings
from tests.training.several_devices import CONFIG, NAMES, VOCABULARY, WHOLE, batch_of

HALF = dataclasses.replace(WHOLE, dtype="bfloat16")
QUERY, LIFT = "vision/backbone/blocks/attention/query/kernel", "guidance/lift_fine/kernel"


def described(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def test_what_is_cut_is_held_whole_in_the_type_it_is_sent_in():
    parameters = described(**{QUERY: (3, 64, 64), LIFT: (64, 32), "decoder/bias": (5,)})
    shardings = parameter_shardings(parameters, described_mesh(8, 1, 8), fsdp_bytes=0)
    assert gathered_bytes(parameters, shardings, "bfloat16") == 2 * 3 * 64 * 64 + 4 * 64 * 32
    assert gathered_bytes(parameters, parameter_shardings(parameters, described_mesh(1, 8, 8), 0), "bfloat16") == 0


def test_nothing_is_gathered_where_nothing_is_cut():
    parameters = {QUERY: jnp.ones((3, 64, 64))}
    shardings = parameter_shardings(parameters, described_mesh(1, 1, 1), fsdp_bytes=0)
    assert gathered(parameters, shardings, "bfloat16")[QUERY] is parameters[QUERY]


def test_a_step_says_what_it_holds_whole():
    config = Config(model=HALF, fsdp_bytes=0, fsdp_gather_once=True)
    assert describe_step(config, described_mesh(8, 1, 8)).gathered > 0
    assert describe_step(config, described_mesh(1, 1, 1)).gathered == 0
    assert describe_step(dataclasses.replace(config, fsdp_gather_once=False), described_mesh(8, 1, 8)).gathered == 0


def test_the_model_itself_casts_what_is_cast_before_it_is_sent():
    """So the bits are the same: were one of them used in float32, these would be others."""
    parameters = initialize(HALF, jax.random.key(0))
    cast = {name: x.astype(jnp.bfloat16) if CAST.fullmatch(name) else x for name, x in parameters.items()}
    trainable, _ = partition(parameters, HALF, dataclasses.replace(CONFIG.train, finetune="attention"))
    towers = {name for name in trainable if name.startswith(("vision/", "text/")) and name.endswith("kernel")}
    assert towers
    assert all(CAST.fullmatch(name) for name in towers)
    graph, _ = build(HALF)
    images = jnp.asarray(batch_of(0).image, jnp.float32)[:2] / 255
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, (NAMES, 8), np.int32)

    @jax.jit
    def run(parameters):
        model = bind(graph, join(parameters, {}))
        return model.encode_patches(images).patches, model.encode_text(tokens)

    for found, expected in zip(run(cast), run(parameters), strict=True):
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))
