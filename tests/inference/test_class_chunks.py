"""Class lists chunk by chunk: the scores of all at once, programs shared by lists of any length."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.classes.chunks import ClassChunks
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.inference.views.local_global import score_classes
from dinov3seg_jax.models.graph import bind, build
from tests.closeness import SCORES

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (2, 48, 48, 3), np.uint8)
TEXT = RNG.standard_normal((5, 64)).astype(np.float32)


def with_options(config, **options):
    return dataclasses.replace(config, inference=dataclasses.replace(config.inference, **options))


@pytest.mark.parametrize(
    "options",
    [{"mode": "whole"}, *(pytest.param(other, marks=pytest.mark.slow) for other in ({}, {"fusion": "logits"}))],
)
def test_scores_are_those_of_all_classes_at_once(config, parameters, options):
    config = with_options(config, class_chunk=2, kept_megabytes=0, **options)
    graph, _ = build(config.model)

    @jax.jit
    def at_once(parameters):
        pixels = PICTURES.astype(np.float32) / 255
        return score_classes(bind(graph, parameters), pixels, TEXT[None], None, config.inference)

    found = list(ClassChunks(config)(parameters, PICTURES, TEXT))
    assert [chunk.first for chunk in found] == [0, 2, 4]
    assert np.concatenate([chunk.class_mask for chunk in found]).tolist() == 5 * [True] + [False]
    scores = np.concatenate([chunk.scores for chunk in found], axis=1)
    np.testing.assert_allclose(scores[:, :5], at_once(parameters), atol=SCORES)


def test_lists_of_any_length_share_their_programs(config, parameters):
    segmenter = Segmenter(with_options(config, class_chunk=2), parameters)
    chunks = segmenter.chunks
    programs = []
    for count in (3, 5, 12):
        names = [f"thing {number}" for number in range(count)]
        assert segmenter.segment(PICTURES[0], names).labels.max() < count
        programs.append(
            [step._cache_size() for step in (chunks.programs.start, chunks.programs.collect, chunks.programs.decode)]
        )
    assert programs[0] == programs[1] == programs[2]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fusion": "logits"}])
def test_rejected_classes_are_as_good_as_never_named(config, parameters, options):
    names = [f"thing {number}" for number in range(9)]
    both = Segmenter(with_options(config, best_classes=3, **options), parameters).segment_arrays(PICTURES, names, 2)
    lists = [np.unique(result.labels) for result in both]
    assert lists[0].tolist() != lists[1].tolist()  # each picture has a list of its own
    for picture, result in zip(PICTURES, both, strict=True):
        every = Segmenter(with_options(config, **options), parameters)
        chunks = ClassChunks(with_options(config, best_classes=3, **options))
        kept = next(iter(chunks(parameters, picture[None], every.embed(names)))).lists[0]
        alone = every.segment(picture, [names[index] for index in kept])
        assert (result.labels == kept[alone.labels]).mean() > 0.999, "but for ties"
        np.testing.assert_allclose(result.confidence, alone.confidence, atol=SCORES)


def test_the_classes_kept_are_those_of_the_highest_correlation(config, parameters):
    chunks = ClassChunks(with_options(config, best_classes=2, mode="whole"))
    (scene,) = chunks.programs.start(parameters, PICTURES)
    text = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)
    patches = np.asarray(scene.refined).reshape(2, -1, 1, 32)
    patches = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    halves = text.reshape(300, 2, 32)
    greatest = (patches[:, :, None] * halves / np.linalg.norm(halves, axis=-1, keepdims=True)).sum(-1).max(axis=(1, 3))
    expected = np.sort(np.argsort(-greatest, axis=1)[:, :2], axis=1)
    np.testing.assert_array_equal(chunks._rank((scene,), text, 2), expected)
    assert chunks._rank((scene,), text[:2], 2) is None


def test_rejection_needs_a_head_that_takes_any_list(config, parameters):
    late = dataclasses.replace(config.model.late, class_attention="full")
    full = with_options(dataclasses.replace(config, model=dataclasses.replace(config.model, late=late)), best_classes=2)
    with pytest.raises(UserError, match=r"inference.best_classes needs linear class attention"):
        Segmenter(full, parameters)


@pytest.mark.parametrize(
    ("classes", "options", "expected"),
    [
        (3, {}, (8, True)),
        (5000, {}, (5120, True)),
        (5000, {"class_chunk": 16}, (16, True)),
        (5000, {"class_chunk": 16, "kept_megabytes": 2}, (16, False)),
        (5000, {"kept_megabytes": 0}, (5120, False)),
    ],
)
def test_plan(monkeypatch, config, parameters, classes, options, expected):
    """9 cells of 16 channels: 5688 classes would be one chunk on a CPU; a list of 5000 is filled up to 5120."""
    config = with_options(config, **options)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    chunks = ClassChunks(config)
    scenes = jax.eval_shape(chunks.programs.start, parameters, PICTURES[:1])
    assert chunks.plan(scenes, classes) == expected


def test_threads_that_meet_a_new_program_compile_it_once():
    """JAX sees to that; without it every thread would compile the programs of the head."""
    compiled = []

    @jax.jit
    def program(numbers):
        time.sleep(0.1)
        for _ in range(50):
            numbers = jnp.sin(numbers @ numbers)
        return numbers

    def note(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(lambda _: np.asarray(program(np.eye(8, dtype=np.float32))), range(4))
    jax.monitoring.unregister_event_duration_listener(note)
    assert len(compiled) == 1
    for other in others:
        np.testing.assert_array_equal(other, first)
