"""Recomputing the head's blocks in the backward pass changes memory, not gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.models.graph import bind, build, initialize
from tests.models.tiny import changed, compiled, lively, random

HEAD = ("late/", "decoder/", "embed_correlation/", "project_text/")
TEXT, CORRELATION = random(0, 1, 5, 64), random(1, 1, 5, 6, 6, 2)


def gradient(part, remat):
    """The gradient of the head's parameters, as a function, and these."""
    config = changed(part, remat=remat, spe="none") if part else changed("", spe="none")
    graph, _ = build(config)
    parameters = lively(initialize(config, jax.random.key(0)))
    head = {name: value for name, value in parameters.items() if name.startswith(HEAD)}

    def loss(head):
        model = bind(graph, parameters | head)
        return jnp.sum(jnp.square(model.refine_late_and_decode(CORRELATION, None, TEXT)))

    return jax.grad(loss), head


@pytest.mark.parametrize(("part", "blocks"), [("late", 3), pytest.param("decoder", 2, marks=pytest.mark.slow)])
def test_each_block_is_recomputed(part, blocks):
    counts = []
    for remat in (False, True):
        run, head = gradient(part, remat)
        counts.append(str(jax.make_jaxpr(run)(head)).count("prevent_cse=True"))
    assert counts == [0, blocks]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["late", "decoder"])
def test_gradients_are_unchanged(part):
    plain, again = (compiled(run)(head) for run, head in (gradient(part, False), gradient(part, True)))
    largest = max(np.abs(value).max() for value in plain.values())
    for name, value in plain.items():
        np.testing.assert_allclose(again[name], value, rtol=0, atol=1e-5 * largest, err_msg=name)
