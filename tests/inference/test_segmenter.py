"""The public door: any picture, any classes, at the picture's own size."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import dinov3seg_jax
from dinov3seg_jax.config_files import override_inference
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.load import load
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.inference.views.local_global import resize_image, score_classes
from dinov3seg_jax.models.graph import bind, build
from dinov3seg_jax.store.run import RunFolder
from tests.closeness import SCORES

NAMES = ("red circle", "grass", "a dog", "water", "sky")
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (70, 90, 3), np.uint8)


@pytest.mark.slow
def test_labels_are_of_the_pictures_own_size(model):
    result = model.segment(PICTURE, NAMES)
    assert result.labels.dtype == np.int32
    assert result.labels.shape == result.confidence.shape == (70, 90)
    assert len(np.unique(result.labels)) > 1
    assert set(np.unique(result.labels)) <= set(range(5))
    assert 0 <= result.confidence.min() <= result.confidence.max() <= 1
    assert result.names == NAMES
    assert result.image is PICTURE


def test_permuting_the_names_permutes_the_labels(model):
    order = [3, 0, 4, 1, 2]
    straight, permuted = model.segment(PICTURE, NAMES), model.segment(PICTURE, [NAMES[index] for index in order])
    np.testing.assert_allclose(permuted.confidence, straight.confidence, atol=SCORES)
    assert (np.array(order)[permuted.labels] == straight.labels).mean() > 0.999


def test_filling_the_class_list_up_changes_nothing(model, config, parameters):
    graph, _ = build(config.model)
    text, class_mask = model.embed.filled(NAMES)
    assert text.shape == (8, 64)
    assert class_mask.tolist() == 5 * [True] + 3 * [False]
    pixels = resize_image(PICTURE, config.inference, 16)[None]
    (chunk,) = model.chunks(model.parameters, pixels, model.embed(NAMES))
    assert chunk.class_mask.tolist() == class_mask.tolist()
    exact = jax.jit(
        lambda parameters: score_classes(
            bind(graph, parameters), pixels.astype(np.float32) / 255, text[None, :5], None, config.inference
        )
    )(parameters)
    np.testing.assert_allclose(chunk.scores[:, :5], exact, atol=SCORES)


def test_pictures_of_several_sizes_in_batches(config, parameters):
    model = Segmenter(config, parameters)  # of its own: no other test compiled a batch of two for it
    pictures = [PICTURE, PICTURE[:30], PICTURE[:, :20]]
    one_by_one = [model.segment(picture, NAMES) for picture in pictures]
    programs = model.chunks.programs.start._cache_size()
    batched = model.segment_arrays(pictures, NAMES, batch_size=2)
    for alone, together in zip(one_by_one, batched, strict=True):
        np.testing.assert_allclose(together.confidence, alone.confidence, atol=SCORES)
        assert (together.labels == alone.labels).mean() > 0.999
    assert model.chunks.programs.start._cache_size() == programs + 1, "the last batch is filled up"
    assert model.segment_arrays([], NAMES) == []


def test_pictures_of_twenty_sizes_share_all_programs(model, compiled):
    model.segment(PICTURE, NAMES)
    compiled.clear()
    for size in np.random.default_rng(0).integers(1, 701, (20, 2)):
        model.segment(RNG.integers(0, 256, (*size, 3), np.uint8), NAMES)
    assert not compiled


def test_no_stretching(config, parameters):
    native = dataclasses.replace(config, inference=dataclasses.replace(config.inference, resize="native", mode="whole"))
    assert Segmenter(native, parameters).segment(PICTURE[:20, :40], NAMES).labels.shape == (20, 40)


def files(folder):
    grey = RNG.integers(0, 256, (4, 6000), np.uint8)
    colour = Image.fromarray(PICTURE)
    transparent = colour.copy()
    transparent.putalpha(100)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "grey.png": (Image.fromarray(grey[:, :50]), {}, (4, 50)),
        "wide_grey.png": (Image.fromarray(grey), {}, (4, 6000)),
        "one_row.png": (Image.fromarray(grey[:1]), {}, (1, 6000)),
        "one_column.png": (Image.fromarray(grey[:1].T), {}, (6000, 1)),
        "one_pixel.png": (colour.crop((0, 0, 1, 1)), {}, (1, 1)),
        "one_bit.png": (colour.convert("1"), {}, (70, 90)),
        "palette.gif": (colour.convert("P"), {}, (70, 90)),
        "transparent.png": (transparent, {}, (70, 90)),
        "cmyk.jpg": (colour.convert("CMYK"), {}, (70, 90)),
        "16_bit.png": (Image.fromarray(grey.astype(np.uint16)[:, :50] * 257), {}, (4, 50)),
        "float.tif": (Image.fromarray(grey[:, :50].astype(np.float32)), {}, (4, 50)),
        "rotated.jpg": (colour, {"exif": exif}, (90, 70)),
    }


@pytest.mark.parametrize("name", files(None))
def test_every_kind_of_picture(model, tmp_path, name):
    picture, options, shape = files(tmp_path)[name]
    picture.save(tmp_path / name, **options)
    result = model.segment(tmp_path / name, "red circle, grass, a dog")
    assert result.labels.shape == shape
    assert result.image.shape == (*shape, 3)
    assert np.isfinite(result.confidence).all()


def test_pictures_in_memory(model):
    expected = model.segment(PICTURE, NAMES)
    np.testing.assert_array_equal(model.segment(Image.fromarray(PICTURE), NAMES).labels, expected.labels)
    assert model.segment(Image.new("L", (5, 4)), NAMES).labels.shape == (4, 5)


def test_arrays_of_other_kinds_follow_the_rules_for_files(model):
    """Which `tests/data/test_arrays.py` has in full."""
    expected = model.segment(PICTURE, NAMES).labels
    np.testing.assert_array_equal(model.segment(PICTURE / 255, NAMES).labels, expected)
    opaque = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(model.segment(opaque, NAMES).labels, expected)


@pytest.mark.parametrize(
    "array", [PICTURE / 100 - 1, PICTURE[:0], PICTURE.transpose(2, 0, 1), PICTURE[None], np.int32(3)]
)
def test_arrays_that_are_no_picture(model, array):
    with pytest.raises(UserError, match="the image"):
        model.segment(array, NAMES)


@pytest.mark.parametrize(("names", "message"), [([], "no class name"), ("cat, Cat", "appears twice"), ([""], "empty")])
def test_names_that_cannot_be_used(model, names, message):
    with pytest.raises(UserError, match=message):
        model.segment(PICTURE, names)


def test_options_that_do_not_fit(config, parameters):
    wrong = dataclasses.replace(config, inference=dataclasses.replace(config.inference, window=20))
    with pytest.raises(UserError, match="inference.window is 20"):
        Segmenter(wrong, parameters)


@pytest.fixture
def run(monkeypatch, config, parameters):
    """Every folder is that of a run of this model."""
    monkeypatch.setattr(RunFolder, "config", config)
    monkeypatch.setattr(RunFolder, "arrays", lambda folder: parameters)


@pytest.mark.usefixtures("run")
def test_load_with_overrides():
    model = load("folder", ["inference.mode=whole", "inference.templates=('a {}', 'the {}')"])
    assert model.config.inference.mode == "whole"
    assert model.config.inference.templates == ("a {}", "the {}")
    assert model.config.inference.image_size == 48
    assert isinstance(dinov3seg_jax.load("folder"), dinov3seg_jax.Segmenter)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.late.layers=3", "cannot be changed for a trained model"),
        ("inference.modus=whole", "did you mean 'mode'"),
        ("inference.image_size=big", "'inference.image_size' is 'big'"),
        ("inference.image_size", "not of the form"),
    ],
)
def test_overrides_that_do_not_fit(config, override, message):
    with pytest.raises(UserError, match=message):
        override_inference(config, [override])


def test_importing_the_package_is_light():
    check = "import sys, dinov3seg_jax; print('jax' in sys.modules, dinov3seg_jax.__version__)"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.split()
    assert output[0] == "False"
    assert output[1][0].isdigit()
    assert {"load", "Segmenter", "Segmentation"} <= set(dir(dinov3seg_jax))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = dinov3seg_jax.lod
