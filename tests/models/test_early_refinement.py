"""Early refinement: convex combinations of nearby features, near the features themselves at first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import EarlyRefinementConfig
from dinov3seg_jax.models.early_refinement import EarlyRefinement, ResBlock, adaptive_average_pool, window_mask
from tests.models.tiny import compiled, random

GRIDS = [(4, 6), (8, 12), (16, 24)]  # of the output; that of the features is the first
IMAGES, FEATURES = random(0, 2, 64, 96, 3), random(1, 2, 4, 6, 8)


@pytest.fixture(scope="module", params=GRIDS, ids=str)
def refined(request):
    """(output grid, weights [b, q, k], output)."""
    config = EarlyRefinementConfig(dim=16, heads=2, image_stride=4, window_ratio=0.2)
    graph, state = nnx.split(EarlyRefinement(config, rngs=nnx.Rngs(0)))

    @compiled
    def run(state, images, features):
        model = nnx.merge(graph, state)
        weights = model.attention_weights(images, features, request.param)
        return weights, model(images, features, request.param)

    return request.param, *map(np.asarray, run(state, IMAGES, FEATURES))


def test_rows_of_the_attention_sum_to_one(refined):
    _, weights, _ = refined
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert (weights >= 0).all()


def test_nothing_outside_the_window(refined):
    grid, weights, _ = refined
    allowed = window_mask(grid, FEATURES.shape[1:3], 0.2)
    assert not allowed.all()
    assert not weights[:, ~allowed].any()


def test_outputs_are_convex_combinations(refined):
    grid, weights, output = refined
    features = FEATURES.reshape(2, -1, 8)
    np.testing.assert_allclose(output, (weights @ features).reshape(2, *grid, 8), atol=1e-5)
    assert (output <= features.max(axis=1)[:, None, None] + 1e-5).all()
    assert (output >= features.min(axis=1)[:, None, None] - 1e-5).all()


def test_the_module_starts_near_the_features(refined):
    (height, width), _, output = refined
    rows, columns = height // 4, width // 6
    nearest = FEATURES.repeat(rows, axis=1).repeat(columns, axis=2)
    error = np.linalg.norm(output - nearest) / np.linalg.norm(nearest)
    assert error < (0.2 if rows == 1 else 0.8)


def test_a_ratio_of_zero_means_no_window():
    assert window_mask((3, 5), (2, 4), 0.0).all()


@pytest.mark.parametrize("inputs", [8, 6], ids=["as wide", "wider"])
@pytest.mark.parametrize("grid", [(4, 6), (5, 7)], ids=["whole cells", "cells that overlap"])
def test_pooling_commutes_with_the_last_layers_of_a_block(inputs, grid):
    graph, state = nnx.split(ResBlock(inputs, 8, dtype=jnp.float32, rngs=nnx.Rngs(0)))

    @compiled
    def both(state, maps):
        block = nnx.merge(graph, state)
        return block(maps, lambda x: adaptive_average_pool(x, *grid)), adaptive_average_pool(block(maps), *grid)

    ours, plain = both(state, random(2, 2, 16, 24, inputs))
    np.testing.assert_allclose(ours, plain, atol=1e-6 * float(jnp.abs(plain).max()))


def refinement_with(remat):
    """The sum of squares of the output as a function of parameters and inputs, and parameters to call it with."""
    config = EarlyRefinementConfig(dim=16, heads=2, image_stride=4, window_ratio=0.2, remat=remat)
    graph, state = nnx.split(EarlyRefinement(config, rngs=nnx.Rngs(0)))

    def total(state, images, features):
        return jnp.sum(jnp.square(nnx.merge(graph, state)(images, features)))

    return total, state


def test_remat_recomputes_each_encoder_of_the_image():
    counts = []
    for remat in (False, True):
        total, state = refinement_with(remat)
        counts.append(str(jax.make_jaxpr(jax.grad(total))(state, IMAGES, FEATURES)).count("prevent_cse=True"))
    assert counts == [1, 4]  # the unification recomputes its chunks in any case


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients():
    (plain, state), (again, _) = refinement_with(False), refinement_with(True)
    state = jax.tree.map(lambda value: jnp.asarray(value + 0.1 * random(3, *value.shape)), state)
    (expected, gradients), (found, recomputed) = (
        compiled(jax.value_and_grad(total, argnums=(0, 2)))(state, IMAGES, FEATURES) for total in (plain, again)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    largest = max(float(jnp.abs(value).max()) for value in jax.tree.leaves(gradients))
    for one, other in zip(jax.tree.leaves(recomputed), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("size", "grid"), [((6, 9), (3, 3)), ((6, 9), (6, 3)), ((7, 9), (3, 4)), ((4, 5), (8, 5))], ids=str
)
def test_pooling_takes_the_mean_of_what_each_cell_overlaps(size, grid):
    maps = random(5, 2, *size, 3)
    pooled = np.asarray(adaptive_average_pool(maps, *grid))
    ends = [[(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in zip(size, grid, strict=True)]
    for i, (top, bottom) in enumerate(ends[0]):
        for j, (left, right) in enumerate(ends[1]):
            expected = np.asarray(maps)[:, top:bottom, left:right].mean((1, 2))
            np.testing.assert_allclose(pooled[:, i, j], expected, atol=1e-6)
