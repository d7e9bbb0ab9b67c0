"""True regions get the class of the highest mean score, each connected part by itself."""

import numpy as np

from benchmarks.recognition import named


def test_each_part_of_the_truth_is_named_by_its_mean_score():
    truth = np.array([[0, 0, 1, 0], [-1, 1, 1, 0]])
    scores = np.array([[[9, 0, 1, 2], [7, 1, 1, 2]], [[0, 8, 0, 3], [0, 0, 0, 3]]], float)
    # The left part of class 0 has the means 4.5 and 4; the right one, 2 and 3; that of class 1, 1 and 0.
    assert named(scores, truth).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
