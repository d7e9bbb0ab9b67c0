"""What one process traced another does not trace again; whatever is wrong with the disk only costs time."""

import functools
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dinov3seg_jax.cache import programs
from dinov3seg_jax.cache.traced import remember, traced_once
from dinov3seg_jax.inference.segmenter import Segmenter

NUMBERS = np.arange(4, dtype=np.float32)


class Unknown(NamedTuple):
    """A tuple that JAX was not told how to write."""

    numbers: np.ndarray


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_kept_in", tmp_path)
    return tmp_path


def in_a_new_process(traces, about="config", scale=2.0):
    """The program as a process compiles it that begins now; `traces` grows when it is traced."""

    @functools.partial(jax.jit, static_argnames="power")
    @traced_once(about)
    def program(arrays, nothing=None, *, power=1):
        traces.append(power)
        return {"out": scale * arrays["in"] ** power}

    return program


def test_a_later_process_does_not_trace(folder):
    traces = []
    first, second = (in_a_new_process(traces)({"in": NUMBERS})["out"] for _ in range(2))
    assert traces == [1]
    np.testing.assert_array_equal(first, 2 * NUMBERS)
    np.testing.assert_array_equal(second, first)


def test_other_shapes_keywords_and_configs_are_other_programs(folder):
    traces = []
    for _ in range(2):
        assert in_a_new_process(traces)({"in": NUMBERS}, power=2)["out"].tolist() == [0, 2, 8, 18]
        assert in_a_new_process(traces)({"in": NUMBERS}, None, power=1)["out"].tolist() == [0, 2, 4, 6]
        assert in_a_new_process(traces)({"in": NUMBERS[:2]})["out"].tolist() == [0, 2]
        assert in_a_new_process(traces)({"in": NUMBERS[:2].astype(np.int32)})["out"].tolist() == [0, 2]
        assert in_a_new_process(traces, about="another", scale=3.0)({"in": NUMBERS})["out"].tolist() == [0, 3, 6, 9]
    assert traces == [2, 1, 1, 1, 1]


def test_nothing_is_kept_unless_a_command_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    traces = []
    for _ in range(2):
        in_a_new_process(traces)({"in": NUMBERS})
    assert traces == [1, 1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no program", None])
def test_what_is_damaged_is_traced_again(folder, content):
    traces = []
    in_a_new_process(traces)({"in": NUMBERS})
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    for _ in range(2):
        np.testing.assert_array_equal(in_a_new_process(traces)({"in": NUMBERS})["out"], 2 * NUMBERS)
    assert traces == [1, 1]


def test_a_folder_that_is_gone_costs_time_only(folder):
    folder.rmdir()
    assert remember("question", lambda: b"answer") == b"answer"
    assert not folder.exists()


def test_what_jax_cannot_write_is_traced_as_it_is(folder):
    @jax.jit
    @traced_once("config")
    def program(unknown):
        return unknown.numbers + 1

    np.testing.assert_array_equal(program(Unknown(NUMBERS)), NUMBERS + 1)
    assert not list(folder.iterdir())


def test_tidying_up_knows_what_is_kept(folder):
    remember("question", lambda: b"answer")
    programs.tidy(folder, 10**6)
    assert remember("question", lambda: b"forgotten") == b"answer"
    (path,) = folder.glob(programs.ENTRIES)
    path.write_bytes(path.read_bytes()[:-5])
    (folder / programs.LOOKED).unlink()
    programs.tidy(folder, 10**6)
    assert not path.exists()


def test_an_edit_of_the_package_makes_all_questions_new(folder, monkeypatch):
    remember("question", lambda: b"before")
    monkeypatch.setattr("dinov3seg_jax.cache.traced.SOURCE", "edited")
    assert remember("question", lambda: b"after") == b"after"


def test_an_edit_that_a_process_may_not_have_seen_keeps_nothing(folder, monkeypatch):
    monkeypatch.setattr("dinov3seg_jax.cache.traced._read_source", lambda: "edited")
    assert remember("question", lambda: b"old or new") == b"old or new"
    assert not list(folder.iterdir())


def test_settings_are_those_of_the_moment(folder):
    remember("question", lambda: b"default")
    with jax.default_matmul_precision("highest"):
        assert remember("question", lambda: b"highest") == b"highest"
    assert remember("question", lambda: b"") == b"default"


@pytest.mark.slow
def test_a_second_segmenter_needs_no_model(folder, config, parameters, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    first = Segmenter(config, parameters).segment_arrays([picture], ["sky", "a dog"])[0]
    monkeypatch.setitem(sys.modules, "dinov3seg_jax.models.graph", None)
    second = Segmenter(config, parameters).segment_arrays([picture], ["sky", "a dog"])[0]
    np.testing.assert_array_equal(second.labels, first.labels)
    np.testing.assert_array_equal(second.confidence, first.confidence)


def test_nor_what_models_are_made_of():
    """Their import takes a tenth of the time of a later process."""
    needed = [
        "dinov3seg_jax.pictures.batches",
        "dinov3seg_jax.cli.predict",
        "dinov3seg_jax.training.checkpoint",
    ]
    check = f"import sys, {', '.join(needed)}; print(sorted({{'flax', 'optax', 'orbax', 'jax'}} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", check], env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True
    )
    assert done.stdout == "['jax']\n", done.stderr
