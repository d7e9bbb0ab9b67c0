"""DINOv3's linear evaluation against its repository: head, sliding inference, areas and scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import LinearConfig, ModelConfig
from dinov3seg_jax.convert.tables import dinov3, linear
from dinov3seg_jax.convert.tables.rules import prefixed
from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix
from dinov3seg_jax.evaluation.dinov3_scores import area_scores, areas
from dinov3seg_jax.inference.linear import crop_side
from dinov3seg_jax.inference.views.sliding import Views, average_rows, cut, label_views
from dinov3seg_jax.inference.views.windows import plan_windows, window_size
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.linear_head import LinearProbe
from dinov3seg_jax.models.pixels import IMAGENET
from tests.parity.fixtures import fixtures
from tests.parity.official import (
    arrays,
    channels_first,
    channels_last,
    described,
    filled,
    run,
    state_dict,
    vision_config,
)

TOLERANCE = 5e-5
SCORE_TOLERANCE = 1e-6
DECIDED = 1e-4  # where the two best classes are further apart, the best one is the official one
RULES = (
    *prefixed(dinov3.RULES, source=r"backbone\.", target="vision/backbone/"),
    *prefixed(linear.RULES, source=r"head\."),
)
OFFICIAL_SCORES = {
    "miou": "mIoU",
    "mean_accuracy": "acc",
    "pixel_accuracy": "aAcc",
    "dice": "dice",
    "fscore": "fscore",
    "precision": "precision",
    "recall": "recall",
}


@functools.cache
def load(path):
    return arrays(path)


@functools.cache
def probe(path) -> LinearProbe:
    config = described(load(path), "meta/config_json")
    model = ModelConfig(
        vision=vision_config(config["backbone_config"]),
        linear=LinearConfig(classes=config["num_classes"], layers=tuple(config["layers"])),
    )
    source = {key.replace("/", ".", 1): value for key, value in state_dict(load(path)).items()}
    return filled(lambda: LinearProbe(model, rngs=nnx.Rngs(0)), source, RULES)


def logits(path, normalised: np.ndarray) -> jax.Array:
    """Of windows [n, h, w, 3] that are normalised already, which the model would do again."""
    return run(probe(path), lambda model, images: model(images), normalised * IMAGENET.deviation + IMAGENET.mean)


def slide(path, image: np.ndarray) -> Views:
    config, (pixels,) = described(load(path), "meta/config_json"), channels_last(image)
    size = pixels.shape[0], pixels.shape[1]
    side = crop_side(*size, config["crop"])
    corners, window = plan_windows(*size, side, min(config["stride"], side)), window_size(*size, side)
    return Views(logits(path, cut(pixels, corners, window)), corners, window, size)


def every(path):
    return jnp.ones(described(load(path), "meta/config_json")["num_classes"], bool)


FILES = pytest.mark.parametrize("path", fixtures("linear_seg_eval"), ids=lambda path: path.stem)


def numbered(values, stem, end):
    return sorted(key.removeprefix(stem).removesuffix(end) for key in values if key.startswith(stem) and end in key)


@FILES
def test_head(path, compare):
    values = load(path)
    for key in (key for key in values if key.startswith("out/head_logits_")):
        side = int(key.removeprefix("out/head_logits_"))
        ours = logits(path, channels_last(values["in/image"][..., :side, :side]))
        compare(key, ours, values[key], TOLERANCE)
        for resized in (other for other in values if other.startswith(f"out/head_predict_{side}_to_")):
            official = values[resized]
            predicted = channels_first(resize_linear(channels_last(np.asarray(ours)), *official.shape[2:]))
            compare(resized, predicted, official, TOLERANCE)


@FILES
def test_sliding_windows(path, compare):
    values = load(path)
    for key in (key for key in values if key.endswith("slide_logits")):
        views = slide(path, values[key.replace("out/", "in/").replace("slide_logits", "image")])
        rows, corners = np.arange(views.size[0]), jnp.asarray(views.corners)
        ours = average_rows(views.maps, every(path), corners, rows, views.window, views.size[1], "pixels")
        compare(key, ours[None], values[key], TOLERANCE)


@FILES
def test_labels(path):
    values = load(path)
    labels, confidence = label_views(
        slide(path, values["in/image"]), every(path), *values["out/pred_argmax"].shape, softmax="pixels"
    )
    decided = values["out/pred_top2_margin"] > DECIDED
    np.testing.assert_array_equal(labels[decided], values["out/pred_argmax"][decided])
    assert 1 / len(every(path)) <= confidence.min() <= confidence.max() <= 1


def reduced(truth: np.ndarray) -> np.ndarray:
    """ADE20K's raw labels: 0 and 255 are ignored, the others move down by one."""
    return np.where((truth == 0) | (truth == 255), IGNORED, truth.astype(np.int32) - 1)


@FILES
def test_areas_and_scores(path, compare):
    values, config = load(path), described(load(path), "meta/config_json")
    together = ConfusionMatrix(config["metric_num_classes"])
    for number in numbered(values, "in/metric", "/gt"):
        truth, prediction = reduced(values[f"in/metric{number}/gt"]), values[f"in/metric{number}/pred"]
        official = values[f"out/metric{number}/label_reduced"]
        np.testing.assert_array_equal(np.where(truth == IGNORED, 255, truth), official)
        alone = ConfusionMatrix(config["metric_num_classes"])
        alone.add(prediction, truth)
        np.testing.assert_array_equal(np.stack(list(areas(alone.counts).values())), values[f"out/metric{number}/areas"])
        together.add(prediction, truth)
    ours = area_scores(together.counts)
    for name, official_name in OFFICIAL_SCORES.items():
        compare(name, ours[name] / 100, np.asarray(config["metrics"][official_name]), SCORE_TOLERANCE)
    compare("torchmetrics", ours["miou"] / 100, np.asarray(config["torchmetrics_macro_jaccard"]), SCORE_TOLERANCE)
    per_class = np.array([np.nan if value is None else value for value in config["per_class_iou"]])
    np.testing.assert_allclose(ours["iou"] / 100, per_class, atol=SCORE_TOLERANCE)
