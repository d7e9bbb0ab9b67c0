"""The schedule, what decays, the towers' rate, clipping."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.models.dinov3seg import SegmentationModel
from dinov3seg_jax.models.graph import any_values, build
from dinov3seg_jax.models.presets import CATSEG_L, NANO
from dinov3seg_jax.training.optimizer import decays, learning_rate_schedule, make_optimizer

PLAIN = TrainConfig(steps=100, learning_rate=0.5, weight_decay=0.0, clip_norm=1e9, encoder_lr_scale=1.0)


def updates_of(config, parameters, gradients):
    optimizer = make_optimizer(config)
    return optimizer.update(gradients, optimizer.init(parameters), parameters)[0]


def with_options(**options):
    return TrainConfig(**(vars(PLAIN) | options))


def test_without_warm_up_the_rate_falls_from_its_peak_to_zero_along_a_cosine():
    schedule = learning_rate_schedule(PLAIN)
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 25, 50, 100)],
        [0.5, 0.25 * (1 + np.cos(np.pi / 4)), 0.25, 0.0],
        rtol=1e-6,
        atol=1e-7,
    )


def test_with_warm_up_the_rate_rises_linearly_to_its_peak_first():
    schedule = learning_rate_schedule(with_options(warmup_steps=10))
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10)], [0, 0.25, 0.5], rtol=1e-6)
    assert schedule(55) == pytest.approx(0.25)
    assert schedule(100) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_warm_up_longer_than_the_run_is_cut_short(steps):
    schedule = learning_rate_schedule(with_options(steps=steps, warmup_steps=50))
    rates = np.array([schedule(step) for step in range(steps + 1)])
    assert np.isfinite(rates).all()
    assert rates[steps] == pytest.approx(0, abs=1e-7)


def test_only_matrices_decay():
    names = (
        "decoder/head/kernel",
        "vision/backbone/blocks/attention/query/kernel",
        "late/norm/scale",
        "late/norm/bias",
        "vision/backbone/blocks/ls1",
        "vision/backbone/cls_token",
        "text/logit_scale",
    )
    parameters = {name: jnp.ones(3) for name in names}
    nothing = {name: jnp.zeros(3) for name in names}
    updates = updates_of(with_options(weight_decay=0.1), parameters, nothing)
    for name in names[:2]:
        np.testing.assert_allclose(updates[name], -0.5 * 0.1 * np.ones(3), rtol=1e-6, err_msg=name)
    for name in names[2:]:
        np.testing.assert_array_equal(updates[name], np.zeros(3), err_msg=name)


@pytest.mark.parametrize("towers", ["dinotxt", "clip"])
def test_biases_decay_and_norms_do_not_as_in_cat_seg(towers):
    """Told by the types of modules, as its code tells them."""
    config = dataclasses.replace(NANO, towers=towers, late=CATSEG_L.late, spe="sam")
    model = nnx.eval_shape(lambda: SegmentationModel(config, rngs=any_values()))
    _, described = build(config)
    norms = {
        f"{'/'.join(map(str, path))}/{parameter}"
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.LayerNorm | nnx.GroupNorm | nnx.RMSNorm)
        for parameter in ("scale", "bias")
    }
    decayed = {name for name in described if decays(name, TrainConfig(decay_biases=True))}
    assert decayed == described.keys() - norms
    assert {"decoder/head/bias", "late/classes/0/padding", "late/spatial/0/windowed/attention/out/bias"} <= decayed


def test_rates_add_nothing_to_the_state_that_runs_have_stored():
    parameters = {"sam/a/kernel": jnp.zeros(2), "vision/a/kernel": jnp.zeros(2), "late/a/kernel": jnp.zeros(2)}
    *_, rates = make_optimizer(with_options(train_spe=True)).init(parameters)
    assert rates == optax.MaskedState(optax.EmptyState())


def test_encoders_take_smaller_steps_and_decay_less():
    names = ("vision/backbone/a/kernel", "text/a/kernel", "sam/a/kernel", "late/a/kernel")
    parameters = {name: jnp.full(2, 3.0) for name in names}
    gradients = {name: jnp.full(2, 0.25) for name in names}
    config = with_options(weight_decay=0.1, encoder_lr_scale=0.01, spe_lr_scale=0.05)
    updates = updates_of(config, parameters, gradients)
    full = -0.5 * (1 + 0.1 * 3)
    # Adam divides by 1 - 0.999, of which float32 has four digits, under a root.
    for name, expected in zip(names, (0.01 * full, 0.01 * full, 0.05 * full, full), strict=True):
        np.testing.assert_allclose(updates[name], expected * np.ones(2), rtol=1e-4, err_msg=name)


def test_gradients_are_clipped_by_their_common_norm():
    parameters = {"late/a/kernel": jnp.zeros(1), "vision/a/kernel": jnp.zeros(1)}
    optimizer = make_optimizer(with_options(clip_norm=1.0))
    state = optimizer.init(parameters)

    def first_moment(*gradients):
        by_name = dict(zip(parameters, map(jnp.atleast_1d, gradients), strict=True))
        moments = optax.tree_utils.tree_get(optimizer.update(by_name, state, parameters)[1], "mu")
        return np.concatenate([moments[name] for name in parameters])

    np.testing.assert_allclose(first_moment(30.0, 40.0), [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose(first_moment(0.3, 0.4), [0.03, 0.04], rtol=1e-5)
