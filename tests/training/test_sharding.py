"""Where parameters live, on meshes that need no devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3seg_jax.config import Config, TrainConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.mesh import BY_EXAMPLE, over_batch
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.program import describe_step
from dinov3seg_jax.training.sharding import (
    FSDP_BYTES,
    batch_sharding,
    data_share,
    like_parameters,
    make_mesh,
    on_mesh,
    parameter_shardings,
    parameter_spec,
    replicated,
)
from tests.tiny import MODEL

QUERY = "vision/backbone/blocks/attention/query/kernel"
AUTO = (AxisType.Auto,) * 3  # the axes of `make_mesh`; newer versions of JAX make others unless told


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device."""

    id: int
    process_index: int = 0
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "stand-in"


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a mesh is of devices that are not there."""

    devices: np.ndarray

    @property
    def shape(self):
        return dict(zip(("replica", "data", "model"), self.devices.shape, strict=True))


def mesh(data, model, replicas=1):
    return AbstractMesh((replicas, data, model), ("replica", "data", "model"), AUTO)


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


def test_late_refinement_has_its_matrices_whole_as_each_device_has_its_own_classes():
    assert spec("late/spatial/0/windowed/attention/query/kernel", (128, 128), model=4) == P(None, None)
    assert spec("late/classes/0/ffn/up/kernel", (1024, 4096), data=8, model=4) == P(None, "data")


def test_replicas_hold_the_same():
    assert parameter_spec("late/big/kernel", (2048, 1024), 4, mesh(4, 1, 2)) == P("data", None)
    by_name = parameter_shardings({"late/big/kernel": jax.ShapeDtypeStruct((2048, 1024), np.float32)}, mesh(4, 1, 2))
    assert by_name["late/big/kernel"].shard_shape((2048, 1024)) == (512, 1024)


def test_an_axis_that_does_not_divide_stays_whole():
    assert spec(QUERY, (3, 16, 30), model=4) == P(None, None, None)
    assert spec("text/token_embedding", (65, 16), model=4) == P(None, None)


def test_one_device_cuts_nothing():
    assert spec(QUERY, (24, 1024, 1024)) == P(None, None, None)


def test_only_large_parameters_are_spread_over_the_data_axis():
    at_most = FSDP_BYTES // 4
    assert spec("late/big/kernel", (at_most // 512, 512), data=8) == P(None, None)
    assert spec("late/big/kernel", (at_most // 512 + 8, 512), data=8) == P("data", None)


def test_how_large_is_an_option():
    assert parameter_spec("late/norm/scale", (16,), 4, mesh(8, 1), fsdp_bytes=63) == P("data")
    assert parameter_spec("late/norm/scale", (16,), 4, mesh(8, 1), fsdp_bytes=64) == P(None)


def test_the_depth_of_a_stack_is_not_cut():
    assert parameter_spec(QUERY, (1024, 16, 32), 4, mesh(8, 1), fsdp_bytes=0) == P(None, None, "data")
    assert parameter_spec("sam/window_blocks/norm1/scale", (1024, 12), 4, mesh(8, 1), fsdp_bytes=0) == P(None, None)


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
    assert dict(make_mesh().shape) == {"replica": 1, "data": devices, "model": 1}
    assert make_mesh().axis_types == AUTO
    with pytest.raises(
        UserError, match=f"^{devices} x 3 devices were asked for and there are {devices}; .*model_parallel"
    ):
        make_mesh(devices, 3)


def slices_of(arranged):
    return np.vectorize(lambda device: device.slice_index)(arranged.devices)


def test_each_slice_has_a_replica_unless_told():
    devices = [Device(number, slice_index=number % 2) for number in range(8)]
    arranged = make_mesh(-1, 2, devices)
    assert dict(arranged.shape) == {"replica": 2, "data": 2, "model": 2}
    assert arranged.axis_types == AUTO
    np.testing.assert_array_equal(slices_of(arranged), [[[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    for replicas, data in ((1, 4), (4, 1)):
        arranged = make_mesh(-1, 2, devices, replicas)
        assert dict(arranged.shape) == {"replica": replicas, "data": data, "model": 2}
        np.testing.assert_array_equal(slices_of(arranged).reshape(4, 2), [[0, 0], [0, 0], [1, 1], [1, 1]])
    with pytest.raises(UserError, match="^model_parallel 8 does not fit into one of the 2 slices of 4 devices; set"):
        make_mesh(1, 8, devices)
    with pytest.raises(UserError, match="^replicas 3 cannot share out the 4 devices .*; set --config.replicas=0"):
        make_mesh(-1, 2, devices, 3)


def layout(processes, data, model, replicas=1):
    """A mesh of (replicas, data, model) devices; `processes` says for each whose it is."""
    devices = np.empty(replicas * data * model, object)
    devices[:] = [Device(number, process) for number, process in enumerate(processes)]
    return Layout(devices.reshape(replicas, data, model))


@pytest.mark.parametrize(
    ("processes", "data", "model", "expected"),
    [
        ([0] * 8, 8, 1, [(0, 1)]),
        ([0, 0, 0, 0, 1, 1, 1, 1], 8, 1, [(0, 2), (1, 2)]),
        ([0, 0, 0, 0, 1, 1, 1, 1], 4, 2, [(0, 2), (1, 2)]),
        ([0, 0, 0, 0, 1, 1, 1, 1], 1, 8, [(0, 1), (0, 1)]),
        ([0, 0, 1, 1, 2, 2, 3, 3], 2, 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([1, 0, 1, 0, 1, 0, 1, 0], 8, 1, [(1, 2), (0, 2)]),
    ],
)
def test_processes_read_a_part_of_each_batch_and_those_that_a_model_axis_joins_the_same(
    processes, data, model, expected
):
    arranged = layout(processes, data, model)
    assert [data_share(arranged, process) for process in range(len(expected))] == expected


def test_processes_of_all_replicas_read_a_part_each():
    arranged = layout([0, 0, 1, 1, 2, 2, 3, 3], 2, 2, replicas=2)
    assert [data_share(arranged, process) for process in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    across = layout([0, 1, 0, 1, 0, 1, 0, 1], 2, 2, replicas=2)
    assert [data_share(across, process) for process in range(2)] == [(0, 1), (0, 1)]


def test_processes_that_lie_across_one_another_are_refused():
    with pytest.raises(UserError, match="^model_parallel 3 shares hosts out unevenly; set a --config.model_parallel"):
        data_share(layout([0, 0, 0, 0, 1, 1], 2, 3), 0)


def test_activations_are_kept_where_examples_are_only_where_a_mesh_is_in_view():
    x = jnp.ones((3, 4))
    assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: over_batch(x))(x))
    assert "sharding_constraint" not in str(jax.make_jaxpr(on_mesh(lambda x: over_batch(x), mesh(1, 1)))(x))
    in_view = jax.make_jaxpr(on_mesh(lambda x: over_batch(x, axis=1), mesh(2, 1)))(x)
    (constraint,) = in_view.eqns
    assert constraint.primitive.name == "sharding_constraint"
    assert constraint.params["sharding"].spec == P(None, *BY_EXAMPLE)


@pytest.mark.parametrize("spread", [True, False])
def test_frozen_parameters_are_spread_if_wanted_and_those_that_train_always(spread):
    config = Config(model=MODEL, fsdp_bytes=0, fsdp_frozen=spread)
    state, frozen, *_ = describe_step(config, mesh(8, 1)).shardings

    def cut(shardings):
        return any("data" in sharding.spec for sharding in shardings.values())

    assert cut(frozen) == spread
    assert cut(state.trainable)
