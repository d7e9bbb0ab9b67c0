"""Zero-shot segmentation by TIPSv2 against its notebook: the whole picture and sliding windows."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix, scores
from dinov3seg_jax.inference import tips_zero_shot
from dinov3seg_jax.inference.views.labels import label_pixels
from dinov3seg_jax.inference.views.sliding import average_rows, label_views
from dinov3seg_jax.inference.zero_shot import resize_as_torchvision, stretch
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, described, run
from tests.parity.tips import both_towers

TEXT_TOLERANCE, SLIDE_TOLERANCE, TOLERANCE = 3e-6, 3e-6, 1e-5
DECIDED = 1e-5  # where the two best classes are further apart, the best one is the official one


@functools.cache
def load(path):
    return arrays(path)


@functools.cache
def towers(path):
    return both_towers(described(load(path), "config"), load(path))


def class_texts(path):
    tokens = load(path)["in/ids"]
    pooled = run(towers(path), lambda both, rows: both.text(rows), tokens.reshape(-1, tokens.shape[-1]))
    pooled = pooled.reshape(*tokens.shape[:2], -1)
    return pooled, tips_zero_shot.average_prompts(pooled)


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
    pooled, texts = class_texts(path)
    compare("pooled", pooled[0], values["mid/pooled_class0"], TEXT_TOLERANCE, relative=True)
    compare("text_feats", texts, values["out/text_feats"], TEXT_TOLERANCE, relative=True)
    assert tuple(described(values, "config")["templates"]) == tips_zero_shot.TEMPLATES


def model_input(path, case, options):
    image = load(path)[f"in/{case}/image"]
    if not options.get("uint8"):
        return np.moveaxis(image, 0, -1)
    resized = resize_as_torchvision(image, options["short_side"], tips_zero_shot.LONGEST_FOR_SIDE)
    np.testing.assert_array_equal(resized, load(path)[f"mid/{case}/resized_u8"])
    return tips_zero_shot.picture_pixels(image, options["short_side"])


@CASES
def test_segmentation(path, case, compare):
    values, options = load(path), described(load(path), "config")["cases"][case]
    pixels, text = model_input(path, case, options), jnp.asarray(values["out/text_feats"])
    assert list(np.moveaxis(pixels, -1, 0).shape) == options["model_input"]
    official, every = values[f"out/{case}/pred"], jnp.ones(len(text), bool)

    def cosines(windows):
        return run(towers(path), tips_zero_shot.cosines, windows, text)

    if options["mode"] == "whole":
        (ours,) = cosines(pixels[None])
        stretched = stretch(pixels[None], towers(path).vision.config.patch_size)
        patches = run(towers(path), lambda both, pixels: both.vision(pixels).patches, stretched)
        compare("value_patch", patches[0], values[f"mid/{case}/value_patch"], TOLERANCE, relative=True)
        compare("pred", ours, official, TOLERANCE, relative=True)
        labels, _ = label_pixels((1 + ours) / 2, every, *options["target"])
    else:
        views = tips_zero_shot.slide(cosines, pixels, options["side"], options["stride"])
        compare("window0_cos", views.maps[0], values[f"mid/{case}/window0_cos"], TOLERANCE, relative=True)
        rows = np.arange(views.size[0])
        ours = average_rows(views.maps, every, jnp.asarray(views.corners), rows, views.window, views.size[1], "windows")
        compare("pred", ours, official, SLIDE_TOLERANCE, relative=True)
        labels, _ = label_views(views, every, *options["target"], softmax="windows")
    decided = values[f"out/{case}/top2_margin"] > DECIDED
    np.testing.assert_array_equal(labels[decided], values[f"out/{case}/argmax"][decided])


@FILES
def test_metric(path):
    values = load(path)
    official, truth = values["out/metric/confusion"], values["in/metric/target"]
    matrix = ConfusionMatrix(len(official))
    matrix.add(values["in/metric/pred"], np.where(truth == 255, IGNORED, truth.astype(np.int64)))
    np.testing.assert_array_equal(matrix.counts[:, : len(official)].T, official)
    ours = scores(matrix.counts)["miou"] / 100
    np.testing.assert_allclose(ours, values["out/metric/miou"], rtol=1e-9)
