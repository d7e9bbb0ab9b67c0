"""Zero-shot segmentation against DINOv3's notebook: both variants, the whole picture and sliding windows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.convert.tables import dinotxt
from dinov3seg_jax.inference.classes.embeddings import average_templates
from dinov3seg_jax.inference.views.labels import label_pixels
from dinov3seg_jax.inference.views.sliding import Views, average_rows, cut, label_views
from dinov3seg_jax.inference.views.windows import plan_windows, window_size
from dinov3seg_jax.inference.zero_shot import encode_patches, stretch
from dinov3seg_jax.models.towers import TwoTowers
from dinov3seg_jax.text.prompts import fill
from dinov3seg_jax.text.tokenizer import Tokenizer
from tests.parity.fixtures import HELD_OUT, SHIPPED, fixtures
from tests.parity.official import arrays, described, filled, run, state_dict, text_config, vision_config

COSINE_TOLERANCE = 5e-6
PROBABILITY_TOLERANCE = 1e-6
TEXT_TOLERANCE = 2e-6
DECIDED = 1e-5  # where the two best classes are further apart, the best one is the official one
VARIANTS = ("backbone", "head")


@functools.cache
def load(path):
    return arrays(path)


def weights_of(path):
    """The file a fixture names, beside it if it is there, as it is or held out like itself; else the shipped one."""
    name = described(load(path), "meta/config_json")["weights"]
    places = (path.with_name(name), path.with_name(HELD_OUT + name), SHIPPED / name.removeprefix(HELD_OUT))
    return next(place for place in places if place.is_file())


@functools.cache
def towers(path) -> TwoTowers:
    values = load(path)
    config = described(values, "meta/config_json")
    model = ModelConfig(
        vision=vision_config(config["backbone_config"], config["dinotxt_config"]["vision_model_num_head_blocks"]),
        text=text_config(config["text_config"]),
    )
    return filled(lambda: TwoTowers(model, rngs=nnx.Rngs(0)), state_dict(values), dinotxt.RULES)


FILES = pytest.mark.parametrize("path", fixtures("zeroshot_seg"), ids=lambda path: path.stem)
CASES = pytest.mark.parametrize(
    ("path", "case", "variant"),
    [
        pytest.param(path, case, variant, id=f"{path.stem}-{case}-{variant}")
        for path in fixtures("zeroshot_seg")
        for case in described(load(path), "meta/config_json")["cases"]
        for variant in VARIANTS
        if f"out/{case}/{variant}/pred" in load(path)
    ],
)


@FILES
def test_prompts_and_their_mean(path, compare):
    values = load(path)
    config = described(values, "meta/config_json")
    templates = [template.replace("{0}", "{}") for template in config["templates"]]
    prompts = [fill(template, name) for name in config["classes"] for template in templates]
    official = values["in/tokens"]
    np.testing.assert_array_equal(Tokenizer().tokenize(prompts, official.shape[-1]), official.reshape(len(prompts), -1))
    compare("text_feats", local_text(path), values["out/text_feats"], TEXT_TOLERANCE)


@functools.cache
def local_text(path) -> np.ndarray:
    tokens = load(path)["in/tokens"]
    rows = run(towers(weights_of(path)), TwoTowers.encode_text, tokens.reshape(-1, tokens.shape[-1]))
    averaged = average_templates(np.asarray(rows).reshape(*tokens.shape[:2], -1))
    return averaged[:, averaged.shape[1] // 2 :]


def cosines(path, pixels, variant, resize=stretch):
    def compare(both: TwoTowers, windows: jax.Array, text: jax.Array) -> jax.Array:
        patches = encode_patches(both, windows, variant)
        return jnp.einsum("nhwd,td->nthw", patches, text, precision=jax.lax.Precision.HIGHEST)

    both = towers(weights_of(path))
    return run(both, compare, resize(pixels, both.vision.backbone.config.patch_size), local_text(path))


def slide(path, case, variant) -> Views:
    values, options = load(path), described(load(path), "meta/config_json")["cases"][case]
    pixels = np.moveaxis(values[f"in/{case}/image"], 0, -1)
    size = pixels.shape[0], pixels.shape[1]
    corners = plan_windows(*size, options["side"], options["stride"])
    window = window_size(*size, options["side"])
    return Views(cosines(path, cut(pixels, corners, window), variant), corners, window, size)


@CASES
def test_segmentation(path, case, variant, compare):
    values, options = load(path), described(load(path), "meta/config_json")["cases"][case]
    official = values[f"out/{case}/{variant}/pred"]
    every = jnp.ones(len(official), bool)
    if options["side"] is None:
        (ours,) = cosines(path, np.moveaxis(values[f"in/{case}/image"], 0, -1)[None], variant)
        compare("pred", ours, official, COSINE_TOLERANCE)
        labels, _ = label_pixels((1 + ours) / 2, every, *options["target"])
    else:
        views = slide(path, case, variant)
        rows = np.arange(views.size[0])
        ours = average_rows(views.maps, every, jnp.asarray(views.corners), rows, views.window, views.size[1], "windows")
        compare("pred", ours, official, PROBABILITY_TOLERANCE)
        labels, _ = label_views(views, every, *options["target"], softmax="windows")
    decided = values[f"out/{case}/{variant}/top2_margin"] > DECIDED
    np.testing.assert_array_equal(labels[decided], values[f"out/{case}/{variant}/argmax"][decided])
