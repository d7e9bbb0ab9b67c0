"""What a patch's truth, margin and confusable class are, on hand-made grids."""

import numpy as np

from benchmarks.refinement import confusable, margins, truth_of

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
