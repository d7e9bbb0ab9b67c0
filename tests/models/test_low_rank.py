"""Low-rank updates: which matrices get them, what they begin with, and what they are merged to."""

import dataclasses

import jax
import numpy as np
import pytest

from dinov3seg_jax.models.graph import bind, build, initialize
from dinov3seg_jax.models.low_rank import describe_updates, draw_updates, is_update, merge
from tests.tiny import MODEL

RANK = 3


@pytest.fixture(scope="module")
def parameters():
    """A model's, and updates that change something."""
    first = initialize(MODEL, jax.random.key(0))
    updates = draw_updates(describe_updates(build(MODEL)[1], RANK), jax.random.key(1))
    rng = np.random.default_rng(0)
    return first | {
        name: rng.standard_normal(value.shape, np.float32) if name.endswith("/up") else value
        for name, value in updates.items()
    }


@pytest.mark.parametrize("towers", ["dinotxt", "clip", "tips"])
def test_the_matrices_that_are_updated_are_those_of_queries_and_values(towers):
    vision = dataclasses.replace(MODEL.vision, head_blocks=1 if towers == "dinotxt" else 0)
    _, described = build(dataclasses.replace(MODEL, towers=towers, vision=vision))
    updates = describe_updates(described, RANK)
    ends = [f"attention/{one}/low_rank/{side}" for one in ("query", "value") for side in ("down", "up")]
    stacks = ["vision/backbone", "vision/head", "text"] if towers == "dinotxt" else ["vision", "text"]
    assert sorted(updates) == sorted(f"{stack}/blocks/{end}" for stack in stacks for end in ends)
    depth, inputs, outputs = described["text/blocks/attention/query/kernel"].shape
    assert updates["text/blocks/attention/query/low_rank/down"].shape == (depth, inputs, RANK)
    assert updates["text/blocks/attention/query/low_rank/up"].shape == (depth, RANK, outputs)


def test_new_updates_change_nothing_and_differ_from_each_other():
    _, described = build(MODEL)
    first = initialize(MODEL, jax.random.key(0))
    updates = draw_updates(describe_updates(described, RANK), jax.random.key(1))
    merged = merge(first | updates)
    assert merged.keys() == first.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(merged[name], value, err_msg=name)
    downs = [np.asarray(value) for name, value in updates.items() if name.endswith("/down")]
    assert len({down.tobytes() for down in downs}) == len(downs) == 4
    wide = draw_updates({"a/low_rank/down": jax.ShapeDtypeStruct((2, 400, 50), np.float32)}, jax.random.key(0))
    np.testing.assert_allclose(np.var(wide["a/low_rank/down"]), 1 / 400, rtol=0.05)


def test_a_merged_matrix_is_the_matrix_and_the_product(parameters):
    merged = merge(parameters)
    assert not any(map(is_update, merged))
    name = "vision/backbone/blocks/attention/value"
    down, up = (np.asarray(parameters[f"{name}/low_rank/{side}"], np.float64) for side in ("down", "up"))
    np.testing.assert_allclose(merged[f"{name}/kernel"], parameters[f"{name}/kernel"] + down @ up, rtol=1e-5, atol=1e-6)
    assert np.abs(down @ up).max() > 0.1
    unchanged = [name for name in merged if "/query/kernel" not in name and "/value/kernel" not in name]
    for name in unchanged:
        assert merged[name] is parameters[name], name


@pytest.mark.slow
def test_a_model_with_updates_is_its_merged_export(parameters):
    graph, _ = build(MODEL)
    images = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)

    def seen(parameters):
        model = bind(graph, parameters)
        return model.encode_patches(images).patches, model.encode_text(np.array([[49406, 320, 49407, 0]]))

    plain = seen({name: value for name, value in parameters.items() if not is_update(name)})
    for updated, exported, without in zip(seen(parameters), seen(merge(parameters)), plain, strict=True):
        np.testing.assert_allclose(updated, exported, rtol=0, atol=1e-6 * np.abs(exported).max())
        assert np.abs(updated - without).max() > 1e-2 * np.abs(exported).max()
