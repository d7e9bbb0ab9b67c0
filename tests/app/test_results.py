"""Answers lie on disk under tokens, within bounds, and go when their session does."""

import numpy as np
import pytest

from dinov3seg_jax.app.results import Answer, Results
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.class_lists import ClassList


def result_of(side=20):
    labels = np.arange(side * side, dtype=np.int32).reshape(side, side) % 2
    image = np.full((side, side, 3), 7, np.uint8)
    return Segmentation(labels, np.full((side, side), 0.5, np.float32), ("a", "b"), image)


def test_an_answer_comes_back_as_it_was(tmp_path):
    kept, asked = Results(tmp_path / "kept"), (ClassList.of("a, b"), ClassList.of("c, d"))
    source = tmp_path / "upload.tif"
    source.write_bytes(b"where it lies")
    results = (result_of(), result_of())
    answer = kept.find(kept.keep("s", Answer("dog.tif", {"x": 1}, "tiny", asked, results, source)))
    source.unlink()
    assert (answer.name, answer.view, answer.model, answer.asked) == ("dog.tif", {"x": 1}, "tiny", asked)
    assert answer.source.read_bytes() == b"where it lies"
    for found, given in zip(answer.results, results, strict=True):
        for array in ("labels", "confidence", "image"):
            assert isinstance(getattr(found, array), np.memmap)
            np.testing.assert_array_equal(getattr(found, array), getattr(given, array))
        assert found.summary() == given.summary()


def test_what_belongs_to_an_answer_is_made_once(tmp_path):
    kept = Results(tmp_path)
    token = kept.keep("s", Answer("a", {}))
    made = []

    def make():
        made.append(1)
        return np.arange(3)

    for _ in range(2):
        np.testing.assert_array_equal(kept.once(token, "scores", make), [0, 1, 2])
    assert len(made) == 1
    kept.forget("s")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="was put away"):
        kept.once(token, "scores", make)


def test_the_last_answer_of_a_session_takes_the_place_of_the_one_before(tmp_path):
    kept = Results(tmp_path)
    first, other = kept.keep("s", Answer("a", {}, results=(result_of(),))), kept.keep("t", Answer("b", {}))
    last = kept.keep("s", Answer("c", {}, results=(result_of(),)))
    assert kept.find(last).name == "c"
    assert kept.find(other).name == "b"
    with pytest.raises(UserError, match="was put away"):
        kept.find(first)
    assert {path.name for path in tmp_path.iterdir()} == {last, other}


def test_what_was_looked_at_longest_ago_goes_first(tmp_path):
    kept = Results(tmp_path, most_bytes=10_000)  # of 4,000 each
    tokens = [kept.keep(str(number), Answer("", {}, results=(result_of(),))) for number in range(2)]
    kept.find(tokens[0])
    tokens.append(kept.keep("2", Answer("", {}, results=(result_of(),))))
    with pytest.raises(UserError, match="was put away"):
        kept.find(tokens[1])
    assert {path.name for path in tmp_path.iterdir()} == {tokens[0], tokens[2]}


def test_one_that_is_larger_than_all_the_room_is_kept_alone(tmp_path):
    kept = Results(tmp_path, most_bytes=1)
    kept.keep("a", Answer("", {}, results=(result_of(),)))
    token = kept.keep("b", Answer("", {}, results=(result_of(),)))
    assert [path.name for path in tmp_path.iterdir()] == [token]


def test_closed_and_idle_sessions_leave_nothing(tmp_path):
    kept = Results(tmp_path, idle=-1)
    kept.keep("s", Answer("", {}, results=(result_of(),)))
    kept.forget("another")
    assert len(list(tmp_path.iterdir())) == 1
    kept.forget("s")
    assert not list(tmp_path.iterdir())
    kept.keep("s", Answer("", {}))
    kept.sweep()
    assert not list(tmp_path.iterdir())


def test_a_session_names_no_path(tmp_path):
    Results(tmp_path / "in").keep("../../out", Answer("../name", {}, results=(result_of(),)))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_cannot_be_kept_leaves_nothing(tmp_path):
    kept = Results(tmp_path)
    with pytest.raises(TypeError):
        kept.keep("s", Answer("", {"x": object()}))
    assert not list(tmp_path.iterdir())
