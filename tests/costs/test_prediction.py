"""Plans of predictions: the programs that a segmenter runs, without weights, pictures or devices."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config, InferenceConfig, LinearConfig
from dinov3seg_jax.costs.prediction import costs, described_model, parts, plan_prediction
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.device.precision import narrow
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.graph import ALL_FROZEN, build
from tests.tiny import MODEL

OPTIONS = InferenceConfig(image_size=64, window=32, stride=32, class_chunk=8)
CONFIG = Config(model=MODEL, inference=OPTIONS)


def zeros(config):
    _, described = build(config.model, ALL_FROZEN)
    return {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in described.items()}


@pytest.mark.parametrize("fusion", ["features", pytest.param("logits", marks=pytest.mark.slow)])
def test_the_programs_are_those_that_a_segmenter_runs(monkeypatch, fusion):
    config = dataclasses.replace(CONFIG, inference=dataclasses.replace(OPTIONS, fusion=fusion))
    segmenter = Segmenter(config, zeros(config))
    ran = []

    def counted(name, program):
        def call(*arguments, **static):
            result = program(*arguments, **static)
            given = () if name == "blend" else arguments[1:]
            shapes = jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), (given, result))
            ran.append((name, str(shapes), str(static)))
            return result

        return call

    programs = segmenter.chunks.programs
    wrapped = programs._replace(**{name: counted(name, program) for name, program in programs._asdict().items()})
    monkeypatch.setattr(segmenter.chunks, "programs", wrapped)
    width = MODEL.text.dim * 2
    list(segmenter.chunks(segmenter.parameters, np.zeros((2, 64, 64, 3), np.uint8), np.zeros((20, width), np.float32)))

    length, kept, planned = parts(*described_model(config), 20, 2, jax.default_backend())
    expected = []
    for part in planned:
        given = () if part.name == "blend" else part.arguments[1:]
        shapes = jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), (given, part.result))
        expected += [(part.name, str(shapes), str(part.static))] * part.times
    assert sorted(ran) == sorted(expected)
    assert length == 8
    assert kept > 0


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_parameters_are_described_as_they_are_held(weights):
    config = dataclasses.replace(CONFIG, inference=dataclasses.replace(OPTIONS, weights=weights))
    held = narrow(zeros(config), weights)
    _, described = described_model(config)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in described.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in held.items()
    }


def test_more_names_cost_more_and_chunks_are_counted_as_often_as_they_run():
    config, parameters = described_model(CONFIG)
    few, many = costs(config, parameters, (8, 80), "", None, 1, {})
    start = next(iter(costs(config, parameters, (1,), "", None, 1, {})))
    assert few.cost.flops < many.cost.flops < 10 * few.cost.flops
    assert many.cost.held > few.cost.held  # the maps of all names
    assert start.cost.flops <= few.cost.flops


def test_the_table_has_a_row_for_each_list(capsys):
    plan_prediction(CONFIG, (3, 20), batch_size=2)
    printed = capsys.readouterr().out.splitlines()
    assert "2 picture(s) of 64 x 64 at once on each of 1 device(s)" in printed
    assert [line.split()[:2] for line in printed[-3:-1]] == [["3", "8"], ["20", "8"]]
    plan_prediction(CONFIG, (), benchmark="voc_20")
    assert capsys.readouterr().out.splitlines()[-2].split()[0] == "20"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, linear=LinearConfig(classes=3))), "no linear"),
        (dataclasses.replace(CONFIG, inference=InferenceConfig(resize="catseg")), "a few names at a time"),
    ],
)
def test_models_whose_programs_are_others(config, message):
    with pytest.raises(UserError, match=message):
        plan_prediction(config, (20,))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_slice_says_how_many_pictures_a_second(capsys):
    plan_prediction(CONFIG, (), "v5e:2x2", benchmark="voc_20")
    printed = capsys.readouterr().out
    assert "on each of 4 device(s)" in printed
    rate = float(printed.splitlines()[-4].split()[-1])
    assert rate > 0
    assert f"1,449 pictures in {1449 / rate / 60:.1f} minutes" in printed
