"""Both fusions are those of a plain loop over windows; pictures of any shape get a size that fits."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.views import local_global
from dinov3seg_jax.inference.views.local_global import check_inference, global_size, resize_image, score_classes
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.dinov3seg import Output
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.scene import ImageFeatures

SIZE, WINDOW, STRIDE, PATCH = (48, 64), 32, 16, 16
GRID = (3, 4)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((2, *SIZE, 3), np.float32)
TEXT = RNG.normal(size=(1, 3, 5)).astype(np.float32)
MASK = np.array([[True, True, False]])
WEIGHTS = RNG.normal(size=(3, 5)).astype(np.float32)


class Model:
    """Stands in for the real one: every output depends on the whole view, the text, the mask, the prior."""

    config = SimpleNamespace(vision=SimpleNamespace(patch_size=PATCH))

    def encode_image(self, images):
        patches = self.encode_patches(images).patches
        return ImageFeatures(patches, patches.max(axis=(1, 2), keepdims=True))

    def encode_patches(self, images):
        b, height, width, _ = images.shape
        cells = images.reshape(b, height // PATCH, PATCH, width // PATCH, PATCH, 3).mean((2, 4))
        return ImageFeatures(jnp.tanh((cells - cells.mean((1, 2), keepdims=True)) @ WEIGHTS * 10), None)

    def segment(self, images, features, text, class_mask):
        assert images.shape[0] == text.shape[0] == class_mask.shape[0]
        guided = features.patches * features.prior + images.mean((1, 2, 3), keepdims=True)
        logits = jnp.einsum("bhwd,btd->bhwt", guided, text) * jnp.where(class_mask, 1, 2)[:, None, None]
        h, w = guided.shape[1:3]
        return Output(jnp.moveaxis(resize_linear(logits, 4 * h, 4 * w), -1, 1), logits)

    def __call__(self, images, text, class_mask):
        return self.segment(images, self.encode_image(images), text, class_mask)


MODEL = Model()
encode = jax.jit(MODEL.encode_image)
segment = jax.jit(MODEL.segment)
resize = jax.jit(resize_linear, static_argnums=(1, 2))


def run(images, **options):
    config = InferenceConfig(**{"window": WINDOW, "stride": STRIDE} | options)
    return np.asarray(jax.jit(lambda images: score_classes(MODEL, images, TEXT, MASK, config))(images))


def windows(image):
    for row, column in plan_windows(*SIZE, WINDOW, STRIDE):
        yield row, column, image[None, row : row + WINDOW, column : column + WINDOW]


@pytest.mark.parametrize(("side", "at_once"), [(0, 36), (32, 5)])
def test_features_are_fused_as_in_a_plain_loop(monkeypatch, side, at_once):
    monkeypatch.setattr(local_global, "WINDOWS_AT_ONCE", at_once)
    expected = []
    for image in IMAGES:
        total, count = np.zeros((*GRID, 5)), np.zeros((*GRID, 1))
        for row, column, window in windows(image):
            cells = (
                slice(row // PATCH, (row + WINDOW) // PATCH),
                slice(column // PATCH, (column + WINDOW) // PATCH),
            )
            total[cells] += np.asarray(encode(window).patches[0])
            count[cells] += 1
        whole = encode(resize(image[None], side, side) if side else image[None])
        fused = (total / count + resize(whole.patches, *GRID)) / 2
        logits = segment(image[None], ImageFeatures(fused, whole.prior), TEXT, MASK).logits
        expected.append(jax.nn.sigmoid(logits)[0])
    scores = run(IMAGES, fusion="features", global_size=side)
    assert scores.shape == (2, 3, SIZE[0] // 4, SIZE[1] // 4)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize(("side", "at_once"), [(0, 36), (64, 5)])
def test_logits_are_fused_as_in_a_plain_loop(monkeypatch, side, at_once):
    monkeypatch.setattr(local_global, "WINDOWS_AT_ONCE", at_once)

    def probability(view):
        logits = jnp.moveaxis(segment(view, encode(view), TEXT, MASK).logits, 1, -1)
        return jax.nn.sigmoid(resize(logits, *view.shape[1:3]))

    overview = (48, 64) if side else (32, 32)
    expected = []
    for image in IMAGES:
        total, count = np.zeros((*SIZE, 3)), np.zeros((*SIZE, 1))
        for row, column, window in windows(image):
            total[row : row + WINDOW, column : column + WINDOW] += np.asarray(probability(window)[0])
            count[row : row + WINDOW, column : column + WINDOW] += 1
        whole = resize(probability(resize(image[None], *overview)), *SIZE)[0]
        expected.append(np.moveaxis((total / count + np.asarray(whole)) / 2, -1, 0))
    scores = run(IMAGES, fusion="logits", global_size=side)
    assert scores.shape == (2, 3, *SIZE)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_one_window_of_the_pictures_size_is_the_whole_view():
    whole = run(IMAGES, mode="whole")
    np.testing.assert_allclose(run(IMAGES, window=64, stride=64), whole, atol=1e-5)
    text, mask = np.repeat(TEXT, 2, 0), np.repeat(MASK, 2, 0)
    logits = jnp.moveaxis(segment(IMAGES, encode(IMAGES), text, mask).logits, 1, -1)
    resized = jnp.moveaxis(jax.nn.sigmoid(resize(logits, *SIZE)), -1, 1)
    np.testing.assert_allclose(run(IMAGES, window=64, stride=64, fusion="logits"), resized, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({}, (640, 640), (640, 640)),
        ({}, (32, 2560), (32, 2560)),
        ({"global_size": 384}, (640, 640), (384, 384)),
        ({"global_size": 384}, (640, 1280), (192, 384)),
        ({"fusion": "logits"}, (640, 640), (384, 384)),
        ({"fusion": "logits", "global_size": 512}, (640, 640), (512, 512)),
        ({"fusion": "logits"}, (16, 2560), (16, 384)),
    ],
)
def test_size_of_the_global_view(options, size, expected):
    assert global_size(size, InferenceConfig(**options), PATCH) == expected


@pytest.mark.parametrize(
    ("resize", "shape", "expected"),
    [
        ("square", (48, 100), (640, 640)),
        ("square", (1, 6000), (640, 640)),
        ("short_side", (100, 100), (640, 640)),
        ("short_side", (480, 640), (640, 848)),
        ("short_side", (640, 480), (848, 640)),
        ("short_side", (1, 6000), (16, 2560)),
        ("short_side", (6000, 1), (2560, 16)),
        ("native", (480, 650), (480, 656)),
        ("native", (1, 1), (16, 16)),
        ("native", (7, 40), (16, 48)),
        ("native", (1, 6000), (16, 2560)),
        ("native", (3000, 6000), (1280, 2560)),
    ],
)
def test_pictures_get_a_size_on_the_patch_grid(resize, shape, expected):
    image = np.full((*shape, 3), (10, 200, 30), np.uint8)
    resized = resize_image(image, InferenceConfig(resize=resize), PATCH)
    assert resized.shape == (*expected, 3)
    assert resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - (10, 200, 30)).max() <= 1


def test_a_picture_that_fits_stays_as_it_is():
    image = RNG.integers(0, 256, (32, 48, 3), np.uint8)
    assert resize_image(image, InferenceConfig(resize="native"), PATCH) is image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 650}, "inference.image_size is 650, .* patch size 16; use 640 or 656"),
        ({"window": 8, "stride": 16}, "inference.window is 8, .*; use 16"),
        ({"stride": 100}, "inference.stride is 100"),
        ({"global_size": 100}, "inference.global_size is 100"),
        ({"window": 128, "stride": 256}, "leaves gaps; use 128 or less"),
    ],
)
def test_sizes_off_the_patch_grid_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_inference(InferenceConfig(**options), PATCH)


def test_sizes_that_fit_are_accepted():
    check_inference(InferenceConfig(), PATCH)
    check_inference(InferenceConfig(mode="whole", window=100, stride=300), PATCH)
