"""Answers lie on disk under tokens, within bounds, and go when their session does."""

import numpy as np
import pytest

from dinov3seg_jax.app.results import Results
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation


def result_of(side=20, scores=None):
    labels = np.arange(side * side, dtype=np.int32).reshape(side, side) % 2
    image = np.full((side, side, 3), 7, np.uint8)
    return Segmentation(labels, np.full((side, side), 0.5, np.float32), ("a", "b"), image, scores=scores)


def test_an_answer_comes_back_as_it_was(tmp_path):
    kept = Results(tmp_path)
    result = result_of(scores=np.ones((2, 20, 20), np.float32))
    answer = kept.find(kept.keep("s", "dog.png", [result, result_of()], {"x": 1}))
    assert (answer.name, answer.view, len(answer.results)) == ("dog.png", {"x": 1}, 2)
    first, second = answer.results
    assert first.names == result.names
    assert second.scores is None
    for array in ("labels", "confidence", "image", "scores"):
        assert isinstance(getattr(first, array), np.memmap)
        np.testing.assert_array_equal(getattr(first, array), getattr(result, array))
    assert first.summary() == result.summary()


def test_the_last_answer_of_a_session_takes_the_place_of_the_one_before(tmp_path):
    kept = Results(tmp_path)
    first, other = kept.keep("s", "a", [result_of()], {}), kept.keep("t", "b", [], {})
    last = kept.keep("s", "c", [result_of()], {})
    assert kept.find(last).name == "c"
    assert kept.find(other).name == "b"
    with pytest.raises(UserError, match="was put away"):
        kept.find(first)
    assert {path.name for path in tmp_path.iterdir()} == {last, other}


def test_what_was_looked_at_longest_ago_goes_first(tmp_path):
    kept = Results(tmp_path, most_bytes=12_000)  # of 4,800 each
    tokens = [kept.keep(str(number), "", [result_of()], {}) for number in range(2)]
    kept.find(tokens[0])
    tokens.append(kept.keep("2", "", [result_of()], {}))
    with pytest.raises(UserError, match="was put away"):
        kept.find(tokens[1])
    assert {path.name for path in tmp_path.iterdir()} == {tokens[0], tokens[2]}


def test_one_that_is_larger_than_all_the_room_is_kept_alone(tmp_path):
    kept = Results(tmp_path, most_bytes=1)
    kept.keep("a", "", [result_of()], {})
    token = kept.keep("b", "", [result_of()], {})
    assert [path.name for path in tmp_path.iterdir()] == [token]


def test_closed_and_idle_sessions_leave_nothing(tmp_path):
    kept = Results(tmp_path, idle=-1)
    kept.keep("s", "", [result_of()], {})
    kept.forget("another")
    assert len(list(tmp_path.iterdir())) == 1
    kept.forget("s")
    assert not list(tmp_path.iterdir())
    kept.keep("s", "", [], {})
    kept.sweep()
    assert not list(tmp_path.iterdir())


def test_a_session_names_no_path(tmp_path):
    Results(tmp_path / "in").keep("../../out", "../name", [result_of()], {})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_cannot_be_kept_leaves_nothing(tmp_path):
    kept = Results(tmp_path)
    with pytest.raises(TypeError):
        kept.keep("s", "", [], {"x": object()})
    assert not list(tmp_path.iterdir())
