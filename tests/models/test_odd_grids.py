"""Windows on any grid: cells attend within their own window, and neither padding nor the far border is seen."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.models.late_refinement import WindowAttention
from tests.models.tiny import compiled, random

DIM, HEADS, WINDOW = 8, 2, 12
TOLERANCE = 1e-5


def plain(attention, x, guidance):
    """Every cell with every other of the whole grid, but for those of another window."""
    t, h, w, d = x.shape[1:]
    row, column = np.divmod(np.arange(h * w), w)
    window = (row - attention.shift) // WINDOW, (column - attention.shift) // WINDOW
    together = np.logical_and(*(places[:, None] == places for places in window))
    half = attention.project_guidance(guidance)
    parts = attention.query(x) + half.query, attention.key(x) + half.key, attention.value(x)
    query, key, value = (part.reshape(t, h * w, HEADS, d // HEADS) for part in parts)
    scores = jnp.einsum("tinc,tjnc->tnij", query, key) / np.sqrt(d // HEADS)
    weights = jnp.exp(scores) * together
    mixed = jnp.einsum("tnij,tjnc->tinc", weights / weights.sum(-1, keepdims=True), value)
    return attention.out(mixed.reshape(x.shape))


@pytest.mark.parametrize("shift", [0, WINDOW // 2])
@pytest.mark.parametrize("grid", [(24, 24), (40, 40), (37, 53), (13, 50)], ids=str)
def test_against_attention_over_the_whole_grid(grid, shift):
    attention = WindowAttention(DIM, HEADS, WINDOW, shift, 6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attention)
    x, guidance = random(0, 1, 2, *grid, DIM), random(1, 1, 1, *grid, 6)

    def both(state):
        attention = nnx.merge(graph, state)
        return attention(x, attention.project_guidance(guidance)), plain(attention, x, guidance)

    ours, expected = compiled(both)(state)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


def test_a_grid_narrower_than_a_window():
    """Windows are then as wide as it is short, and not shifted."""
    attention = WindowAttention(DIM, HEADS, WINDOW, WINDOW // 2, 6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(attention)
    run = compiled(lambda state, x: nnx.merge(graph, state)(x, None))
    x = random(0, 1, 1, 7, 30, DIM)
    other = x.copy()
    other[:, :, :, 14:] = 0  # windows of 7 columns, for 7 rows
    ours, changed = run(state, x), run(state, other)
    assert ours.shape == x.shape
    np.testing.assert_allclose(changed[:, :, :, :14], ours[:, :, :, :14], atol=TOLERANCE)
    assert np.abs(changed[:, :, :, 14:] - ours[:, :, :, 14:]).max() > 0.1
