"""Losses against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.training import losses
from dinov3seg_jax.training.losses import (
    alignment_loss,
    masked_mean,
    named_labels,
    sigmoid_cross_entropy,
    upsample_logits,
)

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
LABEL = RNG.integers(-1, 3, (2, 4, 4))
CORRELATION = RNG.uniform(-1, 1, (2, 3, 2, 2, 2)).astype(np.float32)
TEMPERATURE = 1 / 7


def binary_cross_entropy(logits, label):
    """By its definition, [b, h, w]: the mean over classes."""
    probability = 1 / (1 + np.exp(-np.float64(logits)))
    target = np.arange(logits.shape[1])[None, :, None, None] == label[:, None]
    return -np.where(target, np.log(probability), np.log(1 - probability)).mean(axis=1)


def patch_loss(correlation, cells):
    """Cross-entropy between the classes of a patch's pixels and softmax(cosines / temperature), for each text half."""
    pixels = cells[cells >= 0]
    share = np.bincount(pixels, minlength=len(correlation)) / len(pixels)
    scaled = np.float64(correlation) / TEMPERATURE
    log_probability = scaled - np.log(np.exp(scaled).sum(axis=0))
    return -(share @ log_probability).mean()


def test_sigmoid_cross_entropy_is_the_mean_over_labelled_pixels():
    expected = binary_cross_entropy(LOGITS, LABEL)[LABEL >= 0].mean()
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, LABEL), expected, rtol=1e-6)


def test_in_cat_segs_form_ignored_pixels_are_no_class():
    expected = binary_cross_entropy(LOGITS, LABEL).mean()
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, LABEL, ignored_as_negative=True), expected, rtol=1e-6)


def test_a_classs_part_counts_as_much_as_its_weight():
    weights = np.array([[1, 0, 3], [0.5, 2, 0]], np.float32)
    of_class = [binary_cross_entropy(LOGITS[:, t : t + 1], np.where(t == LABEL, 0, -2)) for t in range(3)]
    expected = (np.stack(of_class, 1) * weights[:, :, None, None]).mean(axis=1)[LABEL >= 0].mean()
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, LABEL, weights), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("classes", "weights", "negative"), [(1, None, True), (2, np.array([[1, 0, 3], [0.5, 2, 0]], np.float32), False)]
)
def test_classes_in_parts_are_the_same_loss(monkeypatch, classes, weights, negative):
    """Three classes by one, and by two, where the last part is filled up."""
    small, label = LOGITS[:, :, :2, :2], LABEL

    def both():
        return jax.value_and_grad(sigmoid_cross_entropy)(small, label, weights, ignored_as_negative=negative)

    expected, gradient = both()
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", classes * label.size)
    found, by_parts = both()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(by_parts, gradient, rtol=0, atol=1e-6 * float(jnp.abs(gradient).max()))


def test_many_logits_are_never_there_at_once_at_the_labels_size():
    b, t, side = 1, 171, 384
    arrays = (
        jax.ShapeDtypeStruct((b, t, side // 4, side // 4), jnp.float32),
        jax.ShapeDtypeStruct((b, side, side), jnp.int32),
    )
    traced = str(jax.make_jaxpr(jax.grad(sigmoid_cross_entropy))(*arrays))
    assert f"f32[{b},{t},{side},{side}]" not in traced
    assert f"f32[{b},86,{side},{side}]" in traced


def test_logits_are_brought_to_the_labels_size_bilinearly():
    small = LOGITS[:, :, :2, :2]
    weights = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = weights @ small @ weights.T
    np.testing.assert_allclose(upsample_logits(small, 4, 4), expected, rtol=1e-5, atol=1e-6)
    expected_loss = binary_cross_entropy(expected, LABEL)[LABEL >= 0].mean()
    np.testing.assert_allclose(sigmoid_cross_entropy(small, LABEL), expected_loss, rtol=1e-5)


def test_no_gradient_comes_from_ignored_pixels():
    gradient = jax.grad(sigmoid_cross_entropy)(LOGITS, LABEL)
    by_pixel = np.abs(gradient).max(axis=1)
    assert (by_pixel[LABEL < 0] == 0).all()
    assert (by_pixel[LABEL >= 0] > 0).all()


def test_alignment_loss_pulls_patches_to_the_classes_they_show():
    label = RNG.integers(-1, 3, (2, 8, 8))
    patches = [
        patch_loss(CORRELATION[b, :, i, j], label[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4])
        for b in range(2)
        for i in range(2)
        for j in range(2)
    ]
    np.testing.assert_allclose(alignment_loss(CORRELATION, label, TEMPERATURE), np.mean(patches), rtol=1e-5)


def test_alignment_loss_skips_patches_without_labels():
    label = np.zeros((2, 8, 8), np.int64)
    label[0, :4] = -1
    patches = [patch_loss(CORRELATION[b, :, i, j], np.zeros(1, int)) for b, i, j in np.ndindex(2, 2, 2) if b or i]
    np.testing.assert_allclose(alignment_loss(CORRELATION, label, TEMPERATURE), np.mean(patches), rtol=1e-5)


def test_large_patches_are_sampled_evenly():
    coarse = RNG.integers(-1, 3, (2, 8, 8))
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)
    expected = alignment_loss(CORRELATION, coarse, TEMPERATURE)
    np.testing.assert_allclose(alignment_loss(CORRELATION, fine, TEMPERATURE), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "values"),
    [(sigmoid_cross_entropy, LOGITS), (lambda c, label: alignment_loss(c, label, TEMPERATURE), CORRELATION)],
    ids=["mask", "alignment"],
)
def test_a_wholly_ignored_batch_costs_nothing(loss, values):
    value, gradient = jax.value_and_grad(loss)(values, np.full((2, 4, 4), -1))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(values))


def test_an_ignored_image_leaves_the_mean_to_the_others():
    label = LABEL.copy()
    label[1] = -1
    alone = sigmoid_cross_entropy(LOGITS[:1], LABEL[:1])
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, label), alone, rtol=1e-6)


def test_named_labels_go_through_each_images_own_list():
    label = np.array([[[0, 1, -1]], [[0, 2, 1]]])
    class_ids = np.array([[5, 3, 8], [7, 0, 2]])
    np.testing.assert_array_equal(named_labels(label, class_ids), [[[5, 3, -1]], [[7, 2, 0]]])


def test_masked_mean():
    values, mask = jnp.array([1.0, 5.0, jnp.nan]), np.array([True, True, False])
    assert masked_mean(values, mask) == 3
    assert masked_mean(values, np.zeros(3, bool)) == 0
