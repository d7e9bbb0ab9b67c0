"""The class list: its order changes nothing, and masked entries count for nothing."""

import jax
import numpy as np
import pytest

from dinov3seg_jax.models.graph import bind, build, initialize
from tests.models.tiny import changed, compiled, lively, random

CLASSES, REAL = 6, 4
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["linear", pytest.param("full", marks=pytest.mark.slow)])
def segment(request):
    """(text, class_mask) -> logits [1, t, h, w] of one image."""
    early = changed("early", enabled=False).early  # knows no classes
    config = changed("late", class_attention=request.param, early=early)
    graph, _ = build(config)
    parameters = lively(initialize(config, jax.random.key(0)))
    images = jax.nn.sigmoid(random(0, 1, 64, 48, 3))

    @compiled
    def run(parameters, text, class_mask):
        return bind(graph, parameters)(images, text, class_mask).logits

    return lambda text, mask: np.asarray(run(parameters, text, mask))


@pytest.fixture
def text():
    return random(1, 1, CLASSES, 64)


@pytest.fixture
def mask():
    return np.arange(CLASSES)[None] < REAL


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_permuting_the_classes_permutes_the_logits(segment, text):
    order = np.array([3, 0, 5, 1, 4, 2])
    everyone = np.ones((1, CLASSES), bool)
    close(segment(text[:, order], everyone), segment(text, everyone)[:, order])


def test_masked_entries_change_nothing_for_the_others(segment, text, mask):
    other = text.copy()
    other[:, REAL:] = random(2, 1, CLASSES - REAL, 64)
    close(segment(other, mask)[:, :REAL], segment(text, mask)[:, :REAL])


def test_masked_entries_are_as_good_as_absent(segment, text, mask):
    alone = segment(text[:, :REAL], np.ones((1, REAL), bool))
    close(segment(text, mask)[:, :REAL], alone)


def test_a_class_depends_on_the_others(segment, text):
    everyone = np.ones((1, CLASSES), bool)
    other = text.copy()
    other[:, -1] = random(3, 1, 64)
    assert np.abs(segment(other, everyone)[:, 0] - segment(text, everyone)[:, 0]).max() > 1e-4
