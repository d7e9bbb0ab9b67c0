"""The moving average of the weights, and how it takes the weights' place in a checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.models.graph import build
from dinov3seg_jax.store.folder import load_parameters
from dinov3seg_jax.training import loop
from dinov3seg_jax.training.average import Averaged, exchange
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.sharding import make_mesh
from dinov3seg_jax.training.start import first_parameters
from tests.training.test_loop import CONFIG

PARAMETERS = {"late/a/kernel": jnp.array([1.0, 2.0]), "vision/a/kernel": jnp.array([[3.0]])}


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_the_average_follows_the_weights(decay):
    optimizer = make_optimizer(TrainConfig(steps=100, learning_rate=0.1, ema_decay=decay))
    weights, state = PARAMETERS, optimizer.init(PARAMETERS)
    expected = {name: np.asarray(value) for name, value in PARAMETERS.items()}
    for step in range(4):
        gradients = {name: jnp.full(value.shape, (-1.0) ** step) for name, value in PARAMETERS.items()}
        updates, state = optimizer.update(gradients, state, weights)
        weights = {name: weights[name] + updates[name] for name in weights}
        kept = min(decay, (1 + step) / (10 + step))
        expected = {name: kept * expected[name] + (1 - kept) * np.asarray(weights[name]) for name in weights}
    for name, value in expected.items():
        np.testing.assert_allclose(state[-1].average[name], value, rtol=1e-6)


def test_the_average_has_memory_of_its_own():
    # A step is given the weights and the average to overwrite: the same buffer twice would be an error.
    optimizer = jax.jit(make_optimizer(TrainConfig(ema_decay=0.9)).init)
    average = optimizer(PARAMETERS)[-1].average
    assert all(average[name].unsafe_buffer_pointer() != PARAMETERS[name].unsafe_buffer_pointer() for name in average)


def test_weights_and_average_change_places_and_back():
    state = make_optimizer(TrainConfig(ema_decay=0.9)).init(PARAMETERS)
    state = (*state[:-1], Averaged(state[-1].steps, {name: value + 1 for name, value in PARAMETERS.items()}))
    average, held = exchange(PARAMETERS, state)
    assert average is state[-1].average
    assert held[-1].average is PARAMETERS
    assert jax.tree.all(jax.tree.map(lambda one, other: one is other, exchange(average, held), (PARAMETERS, state)))


def test_without_an_average_nothing_changes_places():
    state = make_optimizer(TrainConfig()).init(PARAMETERS)
    assert exchange(PARAMETERS, state) == (PARAMETERS, state)


@pytest.mark.slow
def test_a_run_hands_its_average_on_and_continues_with_its_weights(tmp_path, monkeypatch):
    """And its frozen matrices, held in half the memory, come out as they went in: rounded to it, and all else exact."""
    train = dataclasses.replace(
        CONFIG.train, steps=2, finetune="none", ema_decay=0.999, frozen_dtype="bfloat16", checkpoint_every=2
    )
    config = dataclasses.replace(CONFIG, workdir=str(tmp_path / "run"), train=train)
    ends = []

    def save(self, step, parameters, optimizer, position):
        ends.append(optimizer)
        kept(self, step, parameters, optimizer, position)

    kept = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", save)
    loop.train(config)
    run = loop.describe_step(config, make_mesh())
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    state, frozen, *_ = loop.take_up(config, run, checkpoints, 0.0)
    checkpoints.close()
    _, handed_on = load_parameters(tmp_path / "run")
    assert state.step == 2
    for name, value in state.trainable.items():
        np.testing.assert_array_equal(value, ends[0][-1].average[name], err_msg=name)
        np.testing.assert_array_equal(handed_on[name], state.optimizer[-1].average[name], err_msg=name)
    assert (handed_on["decoder/head/kernel"] != state.trainable["decoder/head/kernel"]).any()
    drawn = first_parameters(config, dict.fromkeys(build(config.model)[1]))
    for name, value in frozen.items():
        assert value.dtype == (jnp.bfloat16 if name.endswith("/kernel") else jnp.float32)
        assert handed_on[name].dtype == jnp.float32
        np.testing.assert_array_equal(handed_on[name], drawn[name].astype(value.dtype), err_msg=name)
