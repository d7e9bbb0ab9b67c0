"""What a patch's truth, margin and confusable class are, on hand-made grids."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.refinement import confusable, margins, scores_of, truth_of
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.graph import bind, build, initialize
from tests.tiny import MODEL

SIDE = 32
NAMES = ("red ball", "red box", "grass")


def test_the_truth_of_a_patch_is_the_class_of_most_of_its_pixels():
    label = np.array([[0, 0, 1, 2], [0, 0, 2, 2], [-1, -1, 1, -1], [-1, -1, -1, -1]])
    truth, inside = truth_of(label, 2, 3)
    assert truth.tolist() == [[0, 2], [-1, 1]]
    assert inside.tolist() == [[True, False], [False, False]]


def test_margins_and_what_is_confusable():
    scores = np.array([[[0.5, 0.1]], [[0.3, 0.4]], [[0.1, 0.9]]])
    truth = np.array([[0, 0]])
    np.testing.assert_allclose(margins(scores, truth), [[0.2, -0.8]])
    assert confusable(NAMES, scores, truth).tolist() == [[True, False]]


def test_towers_are_scored_by_the_local_half_of_the_text():
    graph, _ = build(MODEL)
    image = jax.random.uniform(jax.random.key(1), (1, SIDE, SIDE, 3))
    tokens = jax.random.randint(jax.random.key(2), (3, 8), 1, MODEL.text.vocab_size)

    @jax.jit
    def by_both(parameters):
        model = bind(graph, parameters)
        patches = l2_normalize(model.encode_image(image).patches[0])
        local = l2_normalize(jnp.split(model.encode_text(tokens), 2, axis=-1)[1])
        towers, *_ = scores_of(model, image, tokens)
        return towers, jnp.einsum("hwd,td->thw", patches, local)

    np.testing.assert_allclose(*by_both(initialize(MODEL, jax.random.key(0))), atol=1e-5)
