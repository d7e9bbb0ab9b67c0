"""Early refinement: convex combinations of nearby features, near the features themselves at first."""

import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import EarlyRefinementConfig
from dinov3seg_jax.models.early_refinement import EarlyRefinement, window_mask
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
