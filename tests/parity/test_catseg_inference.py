"""CAT-Seg from the photograph to its labels: loader, five views, each view's own classes, blending."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.inference.catseg import CatSegSegmenter
from dinov3seg_jax.inference.views.catseg import cut_views, load_picture
from dinov3seg_jax.inference.views.labels import BestClass
from dinov3seg_jax.models.dinov3seg import REJECTED_LOGIT
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.graph import flatten
from dinov3seg_jax.models.pixels import CLIP
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, described, run, section
from tests.parity.test_catseg_model import filled_model

TOLERANCE = 5e-5
MARGIN = 1e-4


@functools.cache
def load(path):
    return arrays(path)


CASES = [
    pytest.param(path, name, id=f"{path.stem}-{name}")
    for path in fixtures("catseg_inference")
    for name in described(load(path), "config")
]


@functools.cache
def case_of(path, name):
    """What the file says, our model, and the segmenter around it."""
    values, told = section(load(path), f"{name}/"), described(load(path), "config")[name]
    model = filled_model(section(values, "w/"), told)
    sides = {"image_size": told["out_res"][0], "window": told["kernel"], "stride": told["stride"]}
    view = 0 if told["clip_resolution"] == told["kernel"] else told["clip_resolution"]
    options = InferenceConfig(fusion="logits", resize="catseg", view_size=view, **sides)
    parameters = flatten(nnx.state(model))
    return values, told, model, CatSegSegmenter(Config(model=model.config, inference=options), parameters)


def views_of(values, told):
    loaded = load_picture(values["in/photo"], told["min_size_test"])
    return loaded, cut_views(loaded, told["out_res"][0], told["kernel"], told["stride"])


@pytest.mark.parametrize(("path", "name"), CASES)
def test_loader_and_views(path, name, compare):
    values, told, *_ = case_of(path, name)
    loaded, views = views_of(values, told)
    every = told["stored_stride"]
    assert list(loaded.shape[:2]) == told["loader_hw"]
    np.testing.assert_array_equal(loaded[::every, ::every], values["mid/loader_strided"])
    side = told["clip_resolution"]
    seen = np.asarray(resize_linear((views / 255 - CLIP.mean) / CLIP.deviation, side, side))
    every = -(-side // values["mid/clip_input_strided"].shape[-1])
    official = values["mid/clip_input_strided"]
    compare("views", np.moveaxis(seen, -1, 1)[:, :, ::every, ::every], official, TOLERANCE, relative=True)


@pytest.mark.parametrize(("path", "name"), CASES)
def test_from_the_photograph_to_its_labels(path, name, compare):
    values, told, model, segmenter = case_of(path, name)
    _, views = views_of(values, told)
    text = np.asarray(run(model, lambda model, ids: model.encode_text(ids), values["in/tokens"]))
    with jax.default_matmul_precision("highest"):
        kept = segmenter.view_logits(views, text)
        chunks = list(segmenter.scores(kept))
    logits = kept.of(np.arange(len(text)))
    every, official = told["logit_stride"], values["mid/view_logits_strided"]
    dropped = (logits == REJECTED_LOGIT).all(axis=(2, 3))
    if "mid/kept_classes" in values:
        np.testing.assert_array_equal(~dropped, values["mid/kept_classes"])
    ours = logits[:, :, ::every, ::every]
    compare("logits", ours[~dropped], official[~dropped], TOLERANCE, relative=True)

    height, width = told["photo_hw"]
    classes = chunks[0].lists[0]  # the others are 0
    scores = np.zeros((len(text), *chunks[0].scores.shape[2:]), np.float32)
    scores[classes] = np.concatenate([np.asarray(chunk.scores)[0] for chunk in chunks])[: len(classes)]
    resized = np.asarray(resize_linear(scores[..., None], height, width))[..., 0]
    compare("scores", resized, values["out/sem_seg"], TOLERANCE, relative=True)
    best = BestClass([(height, width)])
    for chunk in chunks:
        best.update(chunk.scores, chunk.class_mask, chunk.first)
    labels = classes[best.results()[0][0]]
    clear = values["out/top2_margin"] > MARGIN
    np.testing.assert_array_equal(labels[clear], values["out/argmax"][clear])
    assert clear.mean() > 0.9
