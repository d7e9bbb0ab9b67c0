"""Zero-shot segmentation by TIPSv2 against its notebook: the whole picture and sliding windows."""

import base64
import functools
import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import Config, ZeroShotConfig
from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix
from dinov3seg_jax.evaluation.dinov3_scores import area_scores
from dinov3seg_jax.inference import zero_shot
from dinov3seg_jax.inference.views.labels import label_pixels
from dinov3seg_jax.inference.views.sliding import Views, average_rows, cut, label_views
from dinov3seg_jax.inference.views.windows import plan_windows, window_size
from dinov3seg_jax.models.graph import flatten
from dinov3seg_jax.text.prompts import load_templates
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, described, run
from tests.parity.tips import both_towers, model_config

pytest.importorskip("sentencepiece")
TEXT_TOLERANCE, SLIDE_TOLERANCE, TOLERANCE = 3e-6, 3e-6, 1e-5
DECIDED = 1e-5  # where the two best classes are further apart, the best one is the official one


@functools.cache
def load(path):
    return arrays(path)


@functools.cache
def towers(path):
    return both_towers(described(load(path), "config"), load(path))


def prompts(path):
    """The tokenizer and the class names that the fixture's ids come from: of a file beside it."""
    return json.loads(path.with_name(path.name.replace("zeroshot.npz", "tokenizer.json")).read_text(encoding="utf-8"))


def segmenter(path, **recipe):
    """The one that serves converted weights, with the fixture's weights."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.model"
        tokenizer.write_bytes(base64.b64decode(prompts(path)["model_base64"]))
        model = model_config(described(load(path), "config"), str(tokenizer))
        own = ZeroShotConfig(patch_features="head", templates="tcl_9", **recipe)
        return zero_shot.ZeroShotSegmenter(Config(model=model, zero_shot=own), flatten(nnx.state(towers(path))))


def pooled_texts(path):
    tokens = load(path)["in/ids"]
    pooled = run(towers(path), lambda both, rows: both.text(rows), tokens.reshape(-1, tokens.shape[-1]))
    return pooled.reshape(*tokens.shape[:2], -1)


FILES = pytest.mark.parametrize("path", fixtures("tips_zeroshot"), ids=lambda path: path.stem)
CASES = pytest.mark.parametrize(
    ("path", "case"),
    [
        pytest.param(path, case, id=f"{path.stem}-{case}")
        for path in fixtures("tips_zeroshot")
        for case in described(load(path), "config")["cases"]
    ],
)


@FILES
def test_class_texts(path, compare):
    values = load(path)
    compare("pooled", pooled_texts(path)[0], values["mid/pooled_class0"], TEXT_TOLERANCE, relative=True)
    assert tuple(described(values, "config")["templates"]) == load_templates("tcl_9")
    names = prompts(path)["zeroshot"]["names"]
    compare("text_feats", segmenter(path).embed(names), values["out/text_feats"], TEXT_TOLERANCE, relative=True)


def model_input(path, case, options):
    """The picture as the model sees it, with pixels in [0, 1]."""
    image = load(path)[f"in/{case}/image"]
    if not options.get("uint8"):
        return np.moveaxis(image, 0, -1)
    resized = zero_shot.resize_as_torchvision(image, options["short_side"], zero_shot.LONGEST_FOR_SIDE)
    np.testing.assert_array_equal(resized, load(path)[f"mid/{case}/resized_u8"])
    return resized.astype(np.float32) / 255


@CASES
def test_segmentation(path, case, compare):
    values, options = load(path), described(load(path), "config")["cases"][case]
    pixels, text = model_input(path, case, options), values["out/text_feats"]
    assert list(np.moveaxis(pixels, -1, 0).shape) == options["model_input"]
    official, every = values[f"out/{case}/pred"], jnp.ones(len(text), bool)
    model = segmenter(path)
    if options["mode"] == "whole":
        (ours,) = model._compare(pixels[None], text)
        stretched = zero_shot.stretch(pixels[None], model.config.model.vision.patch_size)
        patches = run(towers(path), lambda both, pixels: both.vision(pixels).patches, stretched)
        compare("value_patch", patches[0], values[f"mid/{case}/value_patch"], TOLERANCE, relative=True)
        compare("pred", ours, official, TOLERANCE, relative=True)
        labels, _ = label_pixels((1 + ours) / 2, every, *options["target"])
    else:
        size = pixels.shape[:2]
        corners = plan_windows(*size, options["side"], options["stride"])
        window = window_size(*size, options["side"])
        views = Views(model._compare(cut(pixels, corners, window), text), corners, window, size)
        compare("window0_cos", views.maps[0], values[f"mid/{case}/window0_cos"], TOLERANCE, relative=True)
        rows = np.arange(views.size[0])
        ours = average_rows(views.maps, every, jnp.asarray(views.corners), rows, views.window, views.size[1], "windows")
        compare("pred", ours, official, SLIDE_TOLERANCE, relative=True)
        labels, _ = label_views(views, every, *options["target"], softmax="windows")
    decided = values[f"out/{case}/top2_margin"] > DECIDED
    np.testing.assert_array_equal(labels[decided], values[f"out/{case}/argmax"][decided])


@CASES
def test_pictures_are_labelled(path, case):
    """From bytes and names to labels, by the function that users call."""
    values, options = load(path), described(load(path), "config")["cases"][case]
    if not options.get("uint8") or options["mode"] == "whole":
        pytest.skip("the fixture gives floats")
    model = segmenter(path, short_side=options["short_side"], window=options["side"], stride=options["stride"])
    image = values[f"in/{case}/image"]
    result = model.segment(image, prompts(path)["zeroshot"]["names"])
    decided = values[f"out/{case}/top2_margin"] > DECIDED
    assert tuple(options["target"]) == image.shape[:2]
    np.testing.assert_array_equal(result.labels[decided], values[f"out/{case}/argmax"][decided])


@FILES
def test_metric(path):
    values = load(path)
    official, truth = values["out/metric/confusion"], values["in/metric/target"]
    matrix = ConfusionMatrix(len(official))
    matrix.add(values["in/metric/pred"], np.where(truth == 255, IGNORED, truth.astype(np.int64)))
    np.testing.assert_array_equal(matrix.counts[:, : len(official)].T, official)
    ours = area_scores(matrix.counts)["miou"] / 100
    np.testing.assert_allclose(ours, values["out/metric/miou"], rtol=1e-9)
