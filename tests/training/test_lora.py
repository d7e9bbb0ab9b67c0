"""Runs with low-rank updates: what moves, that they go on exactly, and that their folders hold merged weights."""

import functools

import jax
import numpy as np
import pytest

from dinov3seg_jax.models.graph import build, initialize
from dinov3seg_jax.models.low_rank import UP, is_update, merge
from dinov3seg_jax.store.folder import load_parameters
from dinov3seg_jax.store.run import RunFolder
from dinov3seg_jax.training import loop
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.loop import train
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.program import describe_step
from tests.training.test_loop import SMALL, KilledError, assert_same, at, dying_in, losses, newest

LORA = {"finetune": "lora", "lora_rank": 2}
FIRST = initialize(SMALL, jax.random.key(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of four steps, and that of the same run, which died in the last of them and went on."""
    describe = functools.cache(describe_step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "describe_step", lambda config, mesh: describe(at("any", **LORA), mesh))
        straight = train(at(tmp_path_factory.mktemp("lora") / "straight", **LORA))
        resumed = at(straight.parent / "resumed", **LORA)
        with patch.context() as dying:
            dying.setattr(loop, "_place", dying_in(4, loop._place))
            with pytest.raises(KilledError):
                train(resumed)
        return straight, train(resumed)


@pytest.fixture(scope="module")
def stored(run):
    """All that a step of it holds."""
    return everything(run[0])


def everything(folder):
    """The newest step, with what is frozen among its parameters."""
    found = newest(folder, at("any", **LORA))
    return found._replace(parameters=join(found.parameters, found.frozen))


@pytest.mark.slow
def test_a_run_that_died_continues_as_if_it_had_not(run, stored):
    straight, resumed = run
    assert losses(resumed) == losses(straight)
    other = everything(resumed)
    assert_same((stored.parameters, stored.optimizer), (other.parameters, other.optimizer))


@pytest.mark.slow
def test_of_the_towers_the_updates_move_and_nothing_else(stored):
    updates = {name for name in stored.parameters if is_update(name)}
    assert len(updates) == 8
    for name in updates:
        assert np.abs(stored.parameters[name]).max() > 0, name  # those of "up" began at 0
    towers = [name for name in FIRST if name.startswith(("vision/", "text/"))]
    for name in towers:
        np.testing.assert_array_equal(stored.parameters[name], FIRST[name], err_msg=name)
    assert (stored.parameters["decoder/head/kernel"] != FIRST["decoder/head/kernel"]).any()


@pytest.mark.slow
def test_a_runs_folder_holds_merged_weights(run, stored):
    _, held = load_parameters(run[0])
    assert held.keys() == build(SMALL)[1].keys()
    assert_same(held, merge(stored.parameters))
    changed = {name for name in held if name.startswith(("vision/", "text/")) and (held[name] != FIRST[name]).any()}
    kernels = {f"attention/{which}/kernel" for which in ("query", "value")}
    assert changed == {f"{tower}/blocks/{name}" for tower in ("vision/backbone", "text") for name in kernels}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert_same(RunFolder(run[0]).arrays(shardings=dict.fromkeys(held, device)), held)
    text = RunFolder(run[0]).arrays(("text/",))
    assert_same(text, {name: value for name, value in held.items() if name.startswith("text/")})


@pytest.mark.slow
def test_another_run_starts_from_the_merged_weights(run, tmp_path, capsys):
    other = train(at(tmp_path / "run", steps=1, init_from=str(run[0]), learning_rate=1e-30, **LORA))
    assert "added: low-rank updates of 4 stacks of matrices, 256 numbers" in capsys.readouterr().out
    _, before = load_parameters(run[0])
    for name, value in load_parameters(other)[1].items():
        np.testing.assert_allclose(value, before[name], rtol=0, atol=1e-7, err_msg=name)


def test_updates_have_a_rate_of_their_own():
    name, tower, head = f"text/blocks/attention/query{UP}", "text/norm/scale", "decoder/head/kernel"
    parameters = {one: np.ones(3, np.float32) for one in (name, tower, head)}
    options = at("any", learning_rate=0.5, weight_decay=0.0, encoder_lr_scale=0.01, lora_lr_scale=3.0, **LORA).train
    optimizer = make_optimizer(options)
    moved, _ = optimizer.update(parameters, optimizer.init(parameters), parameters)
    np.testing.assert_allclose(moved[name] / moved[head], 3, rtol=1e-5)
    np.testing.assert_allclose(moved[tower] / moved[head], 0.01, rtol=1e-5)
