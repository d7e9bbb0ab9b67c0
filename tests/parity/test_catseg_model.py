"""The whole of CAT-Seg in evaluation form, through this project's whole model and the conversion of its files."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config_files import from_dict
from dinov3seg_jax.convert.recognise import recognise
from dinov3seg_jax.convert.sources import Source, Tensor
from dinov3seg_jax.models.dinov3seg import REJECTED_LOGIT, SegmentationModel
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.pixels import CLIP
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_last, described, filled, run, section

TOLERANCE = 2e-5


@functools.cache
def load(path):
    return arrays(path)


def filled_model(state, told) -> SegmentationModel:
    """Recognised as a file would be; the options that no file tells are the fixture's."""
    source = Source(
        (Path("model.pth"),), {key: Tensor(value.shape, lambda: None) for key, value in state.items()}, {}, ()
    )
    agg, clip = told["agg"], told["clip"]
    found = recognise(source, "catseg", [f"late.heads={agg['nheads']}", f"late.window={agg['window_size']}"])
    options = found.model
    options["vision"] |= {"heads": clip["vision_heads"], "taps": tuple(clip["taps"])}
    options["text"] |= {"heads": clip["text_heads"]}
    options["late"] |= {"pad_classes": agg["pad_len"], "max_classes": agg["pad_len"]}
    config = from_dict({"model": options}).model
    return filled(lambda: SegmentationModel(config, rngs=nnx.Rngs(0)), state, found.rows)


@functools.cache
def model_of(path) -> SegmentationModel:
    """The file's one model."""
    return filled_model(section(load(path), "w/"), described(load(path), "config"))


CASES = [
    pytest.param(path, name, id=f"{path.stem}-{name}")
    for path in fixtures("catseg_model")
    for name in described(load(path), "config")["runs"]
]


def seen(image: np.ndarray, divisor: int, side: int) -> jax.Array:
    """Normalised, padded with zeros after that, stretched, and brought back to the range that our model takes."""
    pixels = (image.transpose(1, 2, 0).astype(np.float32) / 255 - CLIP.mean) / CLIP.deviation
    height, width = (-(-n // divisor) * divisor for n in pixels.shape[:2])
    padded = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)))
    return resize_linear(jnp.asarray(padded)[None], side, side) * CLIP.deviation + CLIP.mean


@pytest.mark.parametrize(("path", "name"), CASES)
def test_logits_and_scores(path, name, compare):
    told = described(load(path), "config")
    values, case = section(load(path), f"{name}/"), told["runs"][name]

    def segment(model, images, ids):
        text = model.encode_text(ids)
        features = model.encode_image(images)
        steps = {
            "clip_features": features.patches,
            "guidance1": model.guidance.lift_middle(features.prior.early),
            "guidance2": model.guidance.lift_fine(features.prior.middle),
            "correlation": jnp.moveaxis(model.correlate(features.patches, text[None])[..., 0], 1, -1),
        }
        return model.segment(images, features, text[None]).logits, text, steps

    images = seen(values["in/image"], told["size_divisibility"], told["clip_resolution"])
    logits, text, steps = run(model_of(path), segment, images, values["in/tokens"])
    compare("text", text, values["mid/text_embedding"], TOLERANCE, relative=True)
    for step, ours in steps.items():
        if (official := values.get(f"mid/{step}")) is None:
            continue
        if step == "clip_features":
            official, ours = official[:, 1:], ours.reshape(1, -1, ours.shape[-1])
        else:
            official = channels_last(official)
        compare(step, ours, official, TOLERANCE, relative=True)

    logits, official = np.asarray(logits), values["out/logits"]
    if "mid/kept_classes" in values:
        dropped = (logits == REJECTED_LOGIT).all(axis=(2, 3))
        np.testing.assert_array_equal(~dropped, values["mid/kept_classes"])
        compare("kept logits", logits[~dropped], official[~dropped], TOLERANCE, relative=True)
    else:
        compare("logits", logits, official, TOLERANCE, relative=True)
    scores = jax.nn.sigmoid(jnp.moveaxis(logits, 1, -1))
    height, width = case["image_hw"]
    scores = resize_linear(scores[:, :height, :width], *case["output_hw"])[0]
    compare("scores", np.moveaxis(np.asarray(scores), -1, 0), values["out/sem_seg"], TOLERANCE, relative=True)
