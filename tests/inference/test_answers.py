"""What was scored and what was asked: the same answer for whole pictures and pieces, in every order of the names."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3seg_jax.inference.classes.answers import settle, settle_scores
from dinov3seg_jax.text.class_lists import ClassList

NAMES = [f"name {letter}" for letter in "abcdefgh"]


@st.composite
def lists(draw):
    """Names shared out among classes and the background, and an order of both."""
    names = draw(st.permutations(NAMES))
    cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1), min_size=1, max_size=5)))
    groups = [tuple(names[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    *classes, others = groups
    return classes, [(name,) for name in others] if draw(st.booleans()) else []


def score_of(name):
    """A picture of one row, in which each name is the best somewhere."""
    return np.random.default_rng(NAMES.index(name)).random((1, 300), np.float32)


@settings(deadline=None)
@given(lists(), st.sampled_from([0, 0.5, 0.9, 1]), st.randoms(use_true_random=False))
def test_an_answer_depends_on_no_order(asked_for, threshold, random):
    classes, background = asked_for
    answers = []
    for _ in range(2):
        asked = ClassList.of(classes, background=background, synonyms="best", min_confidence=threshold)
        scores = np.stack([score_of(row.names[0]) for row in asked.rows])
        labels, confidence = settle(asked, scores.argmax(axis=0).astype(np.int32), scores.max(axis=0), None)
        merged = settle_scores(asked, scores, None)
        known = len(asked.names) - asked.has_unknown
        assert merged.shape == (known, 1, 300)
        np.testing.assert_array_equal(merged.max(axis=0), confidence)
        expected = np.where(confidence >= threshold, merged.argmax(axis=0), known)
        np.testing.assert_array_equal(labels, expected)
        called = {one.shown: frozenset(one.names) for one in asked.classes}
        answers.append([called.get(asked.names[label], asked.names[label]) for label in labels.ravel()])
        classes = [tuple(random.sample(names, len(names))) for names in random.sample(classes, len(classes))]
        background = random.sample(background, len(background))
    assert answers[0] == answers[1]
