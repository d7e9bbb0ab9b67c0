"""CAFe-DINO converted, opened and used on a picture, against its scripts' sliding windows."""

import dataclasses

import numpy as np
import pytest

import dinov3seg_jax
from dinov3seg_jax.cli.main import main
from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.cafedino import CafeDinoSegmenter
from dinov3seg_jax.inference.load import open_model
from dinov3seg_jax.models.graph import build
from tests.convert.files import FIXTURES, drawn, official, save
from tests.parity.official import arrays, described
from tests.parity.test_cafedino import TOLERANCE, model_config

VALUES = arrays(FIXTURES / "cafedino_model.npz")


def converted(path, prefix="", **others):
    """The fixture's weights as a converted folder; arrays whose keys end as in `others` get so many rows."""
    weights = {key: np.asarray(value) for key, value in official("cafedino_model").items()}
    weights = {key: value.astype(np.int64) if value.dtype == np.int32 else value for key, value in weights.items()}
    for end, length in others.items():
        (key,) = (key for key in weights if key.removesuffix(".weight").endswith(end))
        weights[key] = 0.02 * drawn(key, (length, weights[key].shape[1]))
    source = save(path / "cafedino.safetensors", {f"{prefix}{key}": value for key, value in weights.items()})
    options = ["--config.early.heads=2", "--config.vision.heads=2", "--config.text.heads=2"]
    assert not main(["convert", "cafedino", "--source", str(source), "--out", str(path / "out"), *options])
    return path / "out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("cafedino"), "_orig_mod.")


@pytest.mark.slow
def test_windows_of_a_converted_file(folder):
    settings = described(VALUES, "config")["runs"]["strided"]
    opened = open_model(folder)
    window, stride = settings["strided"]
    assert opened.way == "whole"
    assert (opened.config.inference.window, opened.config.inference.stride) == (224, 112)
    recipe = dataclasses.replace(opened.config.inference, window=window, stride=stride)
    segmenter = opened.segmenter(dataclasses.replace(opened.config, inference=recipe))
    image = np.moveaxis(VALUES["strided/in/image"][0], 0, -1)
    logits = segmenter.logits(image, VALUES["text/out/embedding_10_templates"])
    every, expected = settings["stored_stride"], VALUES["strided/out/logits"]
    error = np.abs(logits[:, ::every, ::every] - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE


def segmenter(**options):
    model = model_config(described(VALUES, "config"))
    model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=49408, context_length=77))
    rng = np.random.default_rng(0)
    parameters = {
        name: 0.1 * np.abs(rng.standard_normal(leaf.shape, np.float32)) for name, leaf in build(model)[1].items()
    }
    recipe = {"mode": "slide", "image_size": 128, "window": 128, "stride": 64} | options
    return CafeDinoSegmenter(Config(model=model, inference=InferenceConfig(**recipe)), parameters)


@pytest.mark.slow
def test_a_picture_at_its_own_size():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    result = segmenter().segment(image, ["road", "tree"])
    assert result.labels.shape == (50, 70)
    assert set(np.unique(result.labels)) <= {0, 1}
    rounding = 1e-6  # of a float32 softmax: the better of two equal logits has half of it
    assert result.confidence.min() >= 0.5 - rounding
    assert result.confidence.max() <= 1 + rounding
    scored = segmenter().segment(image, ["road", "tree"], scores=True)
    np.testing.assert_allclose(scored.scores.max(axis=0), result.confidence, atol=rounding)
    np.testing.assert_allclose(scored.scores.sum(axis=0), 1, atol=rounding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "whole"}, "inference.mode 'slide'"),
        ({"stride": 129}, "leaves gaps; use 128"),
        ({"window": 100, "stride": 50}, "inference.window=96"),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        segmenter(**options)


def test_the_recipe_in_words():
    assert "windows of 128 every 64" in segmenter().describe()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A converted file with CLIP's whole vocabulary, so that any name can be asked."""
    return converted(tmp_path_factory.mktemp("asked"), token_embedding=49408, positional_embedding=77)


@pytest.mark.slow
def test_eval_asks_it_as_its_folder_says(asked):
    data = ["data.eval.name=painted_scenes", "data.eval.size=1", "data.eval.image_size=64"]
    small = ["inference.image_size=128", "inference.window=128", "inference.stride=64"]
    scores = dinov3seg_jax.evaluate(dinov3seg_jax.load_config("ade", ["benchmarks=", *data, *small]), asked)
    assert 0 <= scores["miou"] <= 100
    assert "CAFe-DINO: each picture is stretched to 128 x 128" in (asked / "whole" / "metrics.json").read_text()


@pytest.mark.slow
def test_a_long_list(asked):
    names = [f"thing {number}" for number in range(847)]
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    small = ["inference.image_size=64", "inference.window=64", "inference.stride=64"]
    result = dinov3seg_jax.load(asked, small).segment(image, names)
    assert result.labels.shape == (40, 60)
    assert result.labels.max() < 847
    assert np.isfinite(result.confidence).all()
    assert result.confidence.min() >= 1 / 847 - 1e-6  # the best of a softmax
