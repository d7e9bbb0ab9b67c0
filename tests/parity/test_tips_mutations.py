"""TIPSv2's references are sharp: one wrong detail in an otherwise right model exceeds the tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.convert.tables import tips as table
from dinov3seg_jax.inference import tips_zero_shot
from dinov3seg_jax.inference.views import sliding
from dinov3seg_jax.models import blocks, tips_text, tips_vision
from dinov3seg_jax.models.attention import penalty
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.layers import LayerNorm
from dinov3seg_jax.models.pixels import normalize_pixels
from tests.parity import test_tips_text, test_tips_vision, test_tips_zero_shot
from tests.parity.fixtures import SHIPPED
from tests.parity.official import channels_last, described, run, section
from tests.parity.tips import text_tower, vision_tower

pytestmark = pytest.mark.slow  # each compiles a tower of its own


def error(ours, official, tolerance) -> float:
    """The largest error in tolerances."""
    return float(np.abs(np.asarray(ours) - official).max() / np.abs(official).max() / tolerance)


def vision_error(case, image, *, epsilon=None) -> dict[str, float]:
    """Errors of what the tower gives, in tolerances."""
    path = SHIPPED / "tips_vision.npz"
    values = section(test_tips_vision.load(path), f"{case}/")
    tower = vision_tower(described(test_tips_vision.load(path), "config")[case], values, table.VISION)
    set_epsilon(tower, epsilon)
    ours = run(tower, outputs, channels_last(values[f"in/{image}"]))
    official = section(values, f"out/{image}/")
    names = {"cls_first": "cls_first", "cls_second": "cls_second", "patches": "patch", "values": "value_patch"}
    return {name: error(ours[name], official[theirs], test_tips_vision.TOLERANCE) for name, theirs in names.items()} | {
        "swapped classes": error(ours["cls_second"], official["cls_first"], test_tips_vision.TOLERANCE),
        "patches for values": error(ours["patches"], official["value_patch"], test_tips_vision.TOLERANCE),
    }


def outputs(tower, images):
    features = tower(images)
    return {
        "cls_first": features.cls,
        "cls_second": tower.tokens(images).mixed[:, 1],
        "patches": features.backbone_patches,
        "values": features.patches,
    }


def set_epsilon(tower, epsilon):
    for _, module in nnx.iter_modules(tower):
        if epsilon is not None and isinstance(module, LayerNorm):
            module.epsilon = epsilon


def text_error(case, *, epsilon=None) -> float:
    """Error of the pooled texts, in tolerances."""
    path = SHIPPED / "tips_text.npz"
    values, options = section(test_tips_text.load(path), f"{case}/"), described(test_tips_text.load(path), "config")
    tower = text_tower(options[case], values)
    set_epsilon(tower, epsilon)
    ours = run(tower, lambda tower, rows: tower(rows), values["in/ids"])
    tolerance = test_tips_text.SMALL_TOLERANCE if options[case]["small_activations"] else test_tips_text.TOLERANCE
    return error(ours, values["out/pooled"], tolerance)


def test_what_stands_for_what():
    errors = vision_error("mlp", "up")
    assert max(errors[name] for name in ("cls_first", "cls_second", "patches", "values")) < 1
    assert errors["swapped classes"] > 100
    assert errors["patches for values"] > 100


def test_approximate_gelu(monkeypatch):
    monkeypatch.setattr(blocks, "gelu", lambda x: jax.nn.gelu(x, approximate=True))
    assert vision_error("mlp", "native")["patches"] > 1


def test_vision_epsilon():
    assert vision_error("ratio_small", "rect", epsilon=1e-5)["patches"] > 100


def test_text_epsilon():
    assert text_error("small", epsilon=1e-6) > 10


@pytest.mark.parametrize("case", ["base", "small"])
def test_text_unchanged(case):
    assert text_error(case) < 1


def test_positions_without_antialias(monkeypatch):
    plain = lambda grid, *size: jax.image.resize(grid, (*size, grid.shape[-1]), "linear", antialias=False)  # noqa: E731
    monkeypatch.setattr(tips_vision, "resize_positions", plain)
    assert vision_error("mlp", "down")["patches"] > 100


def test_halves_of_the_gate_swapped(monkeypatch):
    gated = blocks.SwiGlu
    monkeypatch.setattr(gated, "__call__", lambda ffn, x: ffn.down(jax.nn.silu(ffn.up(x)) * ffn.gate(x)))
    assert vision_error("swiglu", "native")["patches"] > 100


def test_values_without_residual_and_feed_forward(monkeypatch):
    bare = lambda block, x: block.attention.out(block.attention.value(block.norm1(x)))  # noqa: E731
    monkeypatch.setattr(tips_vision.VisionBlock, "value_path", bare)
    assert vision_error("mlp", "native")["values"] > 100


def positions_from_one(length, dim):
    return right_sinusoids(length + 1, dim)[1:]


def cosines_first(length, dim):
    return np.roll(right_sinusoids(length, dim), dim // 2, axis=1)


def interleaved(length, dim):
    return right_sinusoids(length, dim).reshape(length, 2, -1).transpose(0, 2, 1).reshape(length, dim)


right_sinusoids = tips_text.sinusoids


@pytest.mark.parametrize("positions", [positions_from_one, cosines_first, interleaved])
def test_other_positions(monkeypatch, positions):
    monkeypatch.setattr(tips_text, "sinusoids", positions)
    assert text_error("base") > 100


class Causal:
    """A bias that is sliced as the one of keys alone, and is causal as well."""

    def __init__(self, allowed):
        before = np.tri(allowed.shape[1], dtype=bool)
        self.bias = penalty(allowed[:, None, :] & before)[:, None]

    def __getitem__(self, _):
        return self.bias


@pytest.mark.parametrize("mask", [Causal, lambda allowed: jnp.zeros(allowed.shape)], ids=["causal", "none"])
def test_other_masks(monkeypatch, mask):
    monkeypatch.setattr(tips_text, "penalty", mask)
    assert text_error("base") > 100


ZERO_SHOT = SHIPPED / "tips_zeroshot.npz"


def test_prompts_not_normalised_one_by_one():
    values = test_tips_zero_shot.load(ZERO_SHOT)
    pooled, right = test_tips_zero_shot.class_texts(ZERO_SHOT)
    wrong = l2_normalize(jnp.asarray(pooled).mean(axis=1))
    tolerance = test_tips_zero_shot.TEXT_TOLERANCE
    assert error(right, values["out/text_feats"], tolerance) < 1 < error(wrong, values["out/text_feats"], tolerance)


def passes(case) -> bool:
    """Whether the parity test does."""

    def compare(_, ours, official, tolerance, *, relative):
        assert np.shape(ours) == official.shape
        assert error(ours, official, tolerance) <= 1

    try:
        test_tips_zero_shot.test_segmentation(ZERO_SHOT, case, compare)
    except AssertionError:
        return False
    return True


def other_bicubic(windows, patch_size):
    size = (-(-side // patch_size) * patch_size for side in windows.shape[1:3])
    return jax.image.resize(windows, (len(windows), *size, 3), "cubic", antialias=False)


right_pixels = tips_zero_shot.picture_pixels


def imagenet(*arguments):
    return np.asarray(normalize_pixels(jnp.asarray(right_pixels(*arguments))))


ZERO_SHOT_MUTATIONS = {
    "another bicubic kernel": ("slide_small", tips_zero_shot, "stretch", other_bicubic),
    "no softmax": ("slide_uint8", test_tips_zero_shot, "average_rows", None),
    "a temperature": ("slide_uint8", jax.nn, "softmax", None),
    "ImageNet statistics": ("slide_uint8", tips_zero_shot, "picture_pixels", imagenet),
}


def without_softmax(*arguments):
    return sliding.average_rows(*arguments[:-1], "none")


right_softmax = jax.nn.softmax


def sharper(scores, axis):
    return right_softmax(scores / 0.07, axis=axis)


@pytest.mark.parametrize("mutation", ZERO_SHOT_MUTATIONS)
def test_zero_shot(monkeypatch, mutation):
    case, place, name, wrong = ZERO_SHOT_MUTATIONS[mutation]
    monkeypatch.setattr(place, name, wrong or {"average_rows": without_softmax, "softmax": sharper}[name])
    assert not passes(case)


def average(starts) -> np.ndarray:
    """The windows' mean of `slide_uint8`, whose windows lie beside each other, each as wide as the picture lets it."""
    values, options = test_tips_zero_shot.load(ZERO_SHOT), described(test_tips_zero_shot.load(ZERO_SHOT), "config")
    options = options["cases"]["slide_uint8"]
    pixels = right_pixels(values["in/slide_uint8/image"], options["short_side"])
    total, count = 0, 0
    for start in starts:
        window = pixels[None, :, start : start + options["side"]]
        maps = run(
            test_tips_zero_shot.towers(ZERO_SHOT), tips_zero_shot.cosines, window, jnp.asarray(values["out/text_feats"])
        )
        scores = jax.nn.softmax(jax.image.resize(maps, (*maps.shape[:2], *window.shape[1:3]), "linear"), axis=1)[0]
        beside = ((0, 0), (0, 0), (start, pixels.shape[1] - start - window.shape[2]))
        total, count = total + np.pad(scores, beside), count + np.pad(np.ones_like(scores), beside)
    return total / count


def test_last_window_not_shifted_back():
    official = test_tips_zero_shot.load(ZERO_SHOT)["out/slide_uint8/pred"]
    assert error(average([0, 18]), official, test_tips_zero_shot.SLIDE_TOLERANCE) < 1
    assert error(average([0, 42]), official, test_tips_zero_shot.SLIDE_TOLERANCE) > 100
