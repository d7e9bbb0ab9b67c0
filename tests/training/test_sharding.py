"""Where parameters live, on meshes that need no devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.sharding import (
    FSDP_BYTES,
    batch_sharding,
    like_parameters,
    make_mesh,
    parameter_shardings,
    parameter_spec,
    replicated,
)

QUERY = "vision/backbone/blocks/attention/query/kernel"


def mesh(data, model):
    return AbstractMesh((data, model), ("data", "model"))


def spec(name, shape, data=1, model=1):
    return parameter_spec(name, shape, 4, mesh(data, model))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (QUERY, P(None, None, "model")),
        ("text/blocks/attention/key/kernel", P(None, None, "model")),
        ("sam/window_blocks/attention/value/kernel", P(None, None, "model")),
        ("vision/head/blocks/attention/out/kernel", P(None, "model", None)),
        ("text/blocks/ffn/up/kernel", P(None, None, "model")),
        ("vision/backbone/blocks/ffn/gate/kernel", P(None, None, "model")),
        ("text/blocks/ffn/down/kernel", P(None, "model", None)),
        ("early/anything/kernel", P(None, None, None)),
        ("vision/backbone/blocks/attention/query/other", P(None, None, None)),
    ],
)
def test_the_first_layer_of_a_pair_is_cut_by_outputs_the_second_by_inputs(name, expected):
    assert spec(name, (3, 16, 32), model=4) == expected


def test_the_token_table_is_cut_by_rows():
    assert spec("text/token_embedding", (64, 16), model=4) == P("model", None)


def test_an_axis_that_does_not_divide_stays_whole():
    assert spec(QUERY, (3, 16, 30), model=4) == P(None, None, None)
    assert spec("text/token_embedding", (65, 16), model=4) == P(None, None)


def test_one_device_cuts_nothing():
    assert spec(QUERY, (24, 1024, 1024)) == P(None, None, None)


def test_only_large_parameters_are_spread_over_the_data_axis():
    at_most = FSDP_BYTES // 4
    assert spec("late/big/kernel", (at_most // 512, 512), data=8) == P(None, None)
    assert spec("late/big/kernel", (at_most // 512 + 8, 512), data=8) == P("data", None)


def test_the_largest_axis_that_divides_is_spread():
    assert spec("late/big/kernel", (1024, 4096), data=8) == P(None, "data")
    assert spec("late/big/kernel", (1024, 4097), data=8) == P("data", None)
    assert spec("late/big/kernel", (1023, 4097), data=8) == P(None, None)


def test_both_axes_at_once_take_different_dimensions():
    assert spec(QUERY, (24, 1024, 1024), data=2, model=4) == P(None, "data", "model")
    assert spec("text/token_embedding", (49408, 1280), data=2, model=4) == P("model", "data")


def test_optimiser_moments_lie_with_their_parameters():
    on = mesh(2, 4)
    parameters = {
        QUERY: jax.ShapeDtypeStruct((24, 1024, 1024), jnp.float32),
        "late/norm/scale": jax.ShapeDtypeStruct((16,), jnp.float32),
        "text/logit_scale": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    by_name = parameter_shardings(parameters, on)
    assert by_name[QUERY] == NamedSharding(on, P(None, "data", "model"))
    state = jax.eval_shape(make_optimizer(TrainConfig()).init, parameters)
    placed = like_parameters(state, by_name, on)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    moments = [
        (leaf.shape, sharding)
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
        if leaf.ndim
    ]
    expected = [(parameters[name].shape, by_name[name]) for name in sorted(parameters)]
    assert moments == expected * 2  # first and second moments
    counts = [
        sharding
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
        if not leaf.ndim
    ]
    assert counts
    assert all(sharding.spec == P() for sharding in counts)


def test_batches_are_shared_out_and_names_are_not():
    on = mesh(4, 2)
    assert batch_sharding(on).shard_shape((8, 32, 32, 3)) == (2, 32, 32, 3)
    assert replicated(on).shard_shape((8, 77)) == (8, 77)


def test_make_mesh_takes_all_devices_or_says_what_is_wrong():
    devices = jax.device_count()
    assert dict(make_mesh().shape) == {"data": devices, "model": 1}
    with pytest.raises(
        UserError, match=f"^{devices} x 3 devices were asked for and there are {devices}; .*model_parallel"
    ):
        make_mesh(devices, 3)
