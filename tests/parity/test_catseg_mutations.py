"""CAT-Seg's references are sharp: one wrong detail in an otherwise right model exceeds the tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.inference import catseg
from dinov3seg_jax.models import attention, blocks, clip, dinotxt, dinov3seg
from dinov3seg_jax.models.blocks import Block, Mlp, QuickMlp
from dinov3seg_jax.models.clip import ClipBlock
from dinov3seg_jax.models.functions import l2_normalize, resize_linear
from dinov3seg_jax.models.late_refinement import ClassRefinementBlock
from dinov3seg_jax.models.layers import LayerNorm
from dinov3seg_jax.models.pixels import CLIP
from dinov3seg_jax.models.scene import PriorMaps
from tests.parity import test_catseg_clip, test_catseg_inference, test_catseg_model
from tests.parity.fixtures import SHIPPED
from tests.parity.official import channels_last, run, section

CLIPS, MODEL, INFERENCE = (SHIPPED / f"catseg_{name}.npz" for name in ("clip", "model", "inference"))
SMALL, WHOLE_SIZE = "small_truncated", "default_640_384"


def error(ours, official, tolerance) -> float:
    """The largest error in tolerances."""
    return float(np.abs(np.asarray(ours) - official).max() / np.abs(official).max() / tolerance)


def passes(test, *arguments) -> bool:
    """Whether a parity test does."""

    def compare(_, ours, official, tolerance, *, relative):
        assert error(ours, official, tolerance) <= 1

    try:
        test(*arguments, compare)
    except AssertionError:
        return False
    return True


def dense_error(size, *, epsilon=None) -> float:
    """Error of CLIP's dense features, in tolerances."""
    given = section(test_catseg_clip.load(CLIPS), f"patch16/{size}/")
    towers = nnx.clone(test_catseg_clip.towers(CLIPS, "patch16"))
    for _, module in nnx.iter_modules(towers):
        if epsilon is not None and isinstance(module, LayerNorm):
            module.epsilon = epsilon
    ours = run(towers, lambda towers, images: towers.vision(images).patches, channels_last(given["in/image"]))
    official = given["out/dense"][:, 1:]
    return error(ours.reshape(official.shape), official, test_catseg_clip.TOLERANCE)


def text_error() -> float:
    """Error of CLIP's texts, in tolerances."""
    values = section(test_catseg_clip.load(CLIPS), "patch16/text/")
    ours = run(test_catseg_clip.towers(CLIPS, "patch16"), lambda towers, ids: towers.text(ids), values["in/tokens"])
    return error(ours, values["out/features"], test_catseg_clip.TOLERANCE)


def own_residual(block, x):
    x = x + block.attention.out(block.attention.value(block.norm1(x)))
    return x + block.ffn(block.norm2(x))


def test_own_residual_in_the_last_block(monkeypatch):
    monkeypatch.setattr(ClipBlock, "dense", own_residual)
    assert dense_error("native") > 100


@pytest.mark.slow
def test_a_real_last_block(monkeypatch):
    monkeypatch.setattr(ClipBlock, "dense", Block.__call__)
    assert dense_error("native") > 100


def test_exact_gelu(monkeypatch):
    monkeypatch.setattr(QuickMlp, "__call__", Mlp.__call__)
    assert text_error() > 100


@pytest.mark.slow
def test_exact_gelu_in_the_image_tower(monkeypatch):
    monkeypatch.setattr(QuickMlp, "__call__", Mlp.__call__)
    assert dense_error("native") > 100


@pytest.mark.slow
def test_quick_gelu_in_the_swin_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "gelu", lambda x: x * jax.nn.sigmoid(1.702 * x))
    assert not model_passes("whole")


@pytest.mark.slow
def test_epsilon():
    assert dense_error("native", epsilon=1e-6) > 10


def resized(a, *, antialias=False):
    """A bicubic resize of any kernel; where it shrinks, antialiasing widens the kernel by the ratio."""

    def weights(inputs, outputs):
        widened = max(inputs / outputs, 1) if antialias else 1
        beyond = 4 * int(np.ceil(widened))
        centres = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
        x = np.abs(centres[:, None] - np.arange(-beyond, inputs + beyond)) / widened
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
        kernel = np.where(x <= 1, near, np.where(x < 2, far, 0))
        folded = kernel[:, beyond:-beyond]
        folded[:, 0] += kernel[:, :beyond].sum(axis=1)
        folded[:, -1] += kernel[:, -beyond:].sum(axis=1)
        return (folded / folded.sum(axis=1, keepdims=True)).astype(np.float32)

    def resize(grid, height, width):
        rows, columns = weights(grid.shape[1], height), weights(grid.shape[2], width)
        return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, grid, precision="highest")

    return resize


@pytest.mark.slow
@pytest.mark.parametrize("size", ["larger", "smaller"])
def test_positions_by_another_bicubic_kernel(monkeypatch, size):
    monkeypatch.setattr(clip, "resize_cubic", resized(-0.75))
    assert dense_error(size) < 1
    monkeypatch.setattr(clip, "resize_cubic", resized(-0.5))
    assert dense_error(size) > 100


@pytest.mark.slow
def test_positions_with_antialias(monkeypatch):
    monkeypatch.setattr(clip, "resize_cubic", resized(-0.75, antialias=True))
    assert dense_error("smaller") > 100


def without_mask(*inputs, causal, kernel):
    return right_attend(*inputs, kernel=kernel)


right_attend = attention.attend


@pytest.mark.slow
def test_no_causal_mask(monkeypatch):
    monkeypatch.setattr(attention, "attend", without_mask)
    assert text_error() > 100


right_argmax = jnp.argmax


def last_argmax(ids, axis):
    return ids.shape[axis] - 1 - right_argmax(ids[:, ::-1], axis=axis)


def test_last_end_token(monkeypatch):
    assert text_error() < 1
    monkeypatch.setattr(dinotxt.jnp, "argmax", last_argmax)
    assert text_error() > 100


def model_passes(case) -> bool:
    return passes(test_catseg_model.test_logits_and_scores, MODEL, case)


def seen_padded_first(image, divisor, side):
    pixels = image.transpose(1, 2, 0).astype(np.float32) / 255
    height, width = (-(-n // divisor) * divisor for n in pixels.shape[:2])
    padded = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)))
    return resize_linear(jnp.asarray(padded)[None], side, side)


def first_guidance_normalised(final, *others):
    return PriorMaps(l2_normalize(final), *others)


def swapped(config):
    return right_taps(config)[::-1]


right_taps = dinotxt.taps_of

MODEL_MUTATIONS = {
    "padding before normalising": ("padded", test_catseg_model, "seen", seen_padded_first),
    "taps swapped": ("whole", clip, "taps_of", swapped),
    "first guidance normalised": ("whole", dinov3seg, "PriorMaps", first_guidance_normalised),
    "no padding classes": ("whole", ClassRefinementBlock, "add_padding", lambda block, sums, count: sums),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MODEL_MUTATIONS)
def test_model(monkeypatch, mutation):
    case, place, name, wrong = MODEL_MUTATIONS[mutation]
    monkeypatch.setattr(place, name, wrong)
    assert not model_passes(case)


def views_error(case, views) -> float:
    """Error of what the towers see, in tolerances; it stands on normalised pixels, as the official values do."""
    values, told, *_ = test_catseg_inference.case_of(INFERENCE, case)
    side, official = told["clip_resolution"], values["mid/clip_input_strided"]
    every = -(-side // official.shape[-1])
    pixels = np.asarray(resize_linear((views / 255 - CLIP.mean) / CLIP.deviation, side, side))
    return error(np.moveaxis(pixels, -1, 1)[:, :, ::every, ::every], official, test_catseg_inference.TOLERANCE)


def views_of(case, stretch, *, by_way_of_the_square=False):
    """The five views, cut by hand."""
    values, told, *_ = test_catseg_inference.case_of(INFERENCE, case)
    loaded, _ = test_catseg_inference.views_of(values, told)
    (square, _), window, stride = told["out_res"], told["kernel"], told["stride"]
    whole = stretch(loaded.astype(np.float32), square)
    starts = (0, stride)
    windows = [whole[row : row + window, column : column + window] for row in starts for column in starts]
    return np.stack([*windows, stretch(whole if by_way_of_the_square else loaded.astype(np.float32), window)])


def plain(image, side):
    return np.asarray(resize_linear(image[None], side, side))[0]


def antialiased(image, side):
    return np.asarray(jax.image.resize(image, (side, side, 3), "linear", antialias=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", [SMALL, WHOLE_SIZE])
def test_views(case):
    assert views_error(case, views_of(case, plain)) < 1
    assert views_error(case, views_of(case, plain, by_way_of_the_square=True)) > 10
    assert views_error(case, views_of(case, antialiased)) > 10


def blended_error(logits) -> float:
    """Error of the blended probabilities of all classes, in tolerances, from logits of the views."""
    values, told, _, segmenter = test_catseg_inference.case_of(INFERENCE, SMALL)
    every = np.broadcast_to(np.arange(logits.shape[1]), logits.shape[:2])
    (chunk,) = segmenter.scores(catseg.ViewLogits(logits, every))
    scores = resize_linear(jnp.moveaxis(chunk.scores[:, : logits.shape[1]], 1, -1), *told["photo_hw"])[0]
    return error(np.moveaxis(np.asarray(scores), -1, 0), values["out/sem_seg"], test_catseg_inference.TOLERANCE)


def test_sigmoid_before_resizing(monkeypatch):
    values, *_ = test_catseg_inference.case_of(INFERENCE, SMALL)
    logits = values["mid/view_logits_strided"]  # every one, in this case
    assert blended_error(logits) < 1
    monkeypatch.setattr(test_catseg_inference, "case_of", test_catseg_inference.case_of.__wrapped__)
    probabilities = np.asarray(jax.nn.sigmoid(logits))
    monkeypatch.setattr(jax.nn, "sigmoid", lambda x: x)
    assert blended_error(probabilities) > 100


@pytest.mark.slow
def test_views_not_brought_to_the_model_s_size(monkeypatch):
    monkeypatch.setattr(test_catseg_inference, "case_of", test_catseg_inference.case_of.__wrapped__)
    monkeypatch.setattr(catseg, "stretched", lambda view, side: view)
    assert not passes(test_catseg_inference.test_from_the_photograph_to_its_labels, INFERENCE, SMALL)
