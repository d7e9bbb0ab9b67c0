"""dinov3.txt alone as a segmenter: from a converted folder or a run to labels, by a recipe that is kept."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dinov3seg_jax
from dinov3seg_jax.cli import predict
from dinov3seg_jax.config import Config, DataConfig, DatasetConfig, LinearConfig, ZeroShotConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.inference.load import TOWERS, open_model
from dinov3seg_jax.inference.recipes import describe_zero_shot
from dinov3seg_jax.inference.views import sliding
from dinov3seg_jax.inference.views.sliding import Views, label_views, strip_rows
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.inference.zero_shot import ZeroShotSegmenter, resize_as_torchvision
from dinov3seg_jax.store.run import RunFolder
from tests.converted import write_folder
from tests.tiny import MODEL

NAMES = ("red circle", "grass", "a dog", "water", "sky")
RECIPE = ZeroShotConfig(short_side=40, window=24, stride=16, templates="paper")
SMALL = ("short_side=40", "window=24", "stride=16", "templates=paper")
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (50, 70, 3), np.uint8)


@pytest.fixture(scope="module")
def segmenter(parameters) -> ZeroShotSegmenter:
    return ZeroShotSegmenter(Config(model=MODEL, zero_shot=RECIPE), parameters)


def with_recipe(segmenter, parameters, **changes):
    config = dataclasses.replace(segmenter.config, zero_shot=dataclasses.replace(RECIPE, **changes))
    return ZeroShotSegmenter(config, parameters)


def test_labels_are_of_the_pictures_own_size(segmenter):
    result = segmenter.segment(PICTURE, NAMES)
    assert result.labels.shape == result.confidence.shape == PICTURE.shape[:2]
    assert len(np.unique(result.labels)) > 1
    assert 0 < result.confidence.min() <= result.confidence.max() <= 1
    assert result.names == NAMES


def test_a_permuted_list_gives_the_same_labels(segmenter):
    order = [3, 0, 4, 1, 2]
    straight, permuted = (segmenter.segment(PICTURE, names) for names in (NAMES, [NAMES[place] for place in order]))
    np.testing.assert_allclose(permuted.confidence, straight.confidence, atol=1e-6)
    assert (np.array(order)[permuted.labels] == straight.labels).mean() > 0.999


def test_the_whole_picture(segmenter, parameters):
    result = with_recipe(segmenter, parameters, mode="whole").segment(PICTURE, NAMES)
    assert result.labels.shape == PICTURE.shape[:2]
    assert 0 <= result.confidence.min() <= result.confidence.max() <= 1


def test_only_the_local_half_of_the_text_counts(segmenter, parameters):
    kernel = np.array(parameters["text/projection/kernel"])
    half = kernel.shape[1] // 2
    for changed, columns in {False: slice(half), True: slice(half, None)}.items():
        other = kernel.copy()
        other[:, columns] = other[:, columns][:, ::-1]
        result = ZeroShotSegmenter(segmenter.config, parameters | {"text/projection/kernel": other})
        labels = result.segment(PICTURE, NAMES).labels
        assert (labels != segmenter.segment(PICTURE, NAMES).labels).any() == changed


def test_pictures_of_other_sizes_share_the_encoder(segmenter, parameters):
    model = with_recipe(segmenter, parameters)
    model.segment_arrays([PICTURE], NAMES)
    programs = model._encode._cache_size()
    model.segment_arrays([PICTURE[:, :68], PICTURE[:, :66].swapaxes(0, 1)], NAMES[:2])
    assert model._encode._cache_size() == programs == 1


@pytest.mark.parametrize("shape", [(60, 1), (40, 1000)])
def test_extreme_shapes(segmenter, shape):
    result = segmenter.segment(RNG.integers(0, 256, (*shape, 3), np.uint8), NAMES)
    assert result.labels.shape == shape
    assert np.isfinite(result.confidence).all()


def test_long_pictures_keep_their_aspect_ratio_but_shrink():
    assert resize_as_torchvision(np.zeros((10, 400, 3), np.uint8), 100, 8).shape == (20, 800, 3)
    assert resize_as_torchvision(np.zeros((30, 10, 3), np.uint8), 100, 8).shape == (300, 100, 3)


def reference(maps, corners, window, size, target, softmax):
    """Every class at full size, in float64, by the definition."""

    def resize(x, height, width):
        def taps(inputs, outputs):
            centres = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
            return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(inputs)))

        return np.einsum("ih,thw,jw->tij", taps(x.shape[1], height), x, taps(x.shape[2], width))

    def normalised(x):
        powers = np.exp(x - x.max(axis=0))
        return powers / powers.sum(axis=0)

    total, count = np.zeros((maps.shape[1], *size)), np.zeros(size)
    for grid, (row, column) in zip(maps.astype(np.float64), corners, strict=True):
        scores = resize(grid, *window)
        place = slice(row, row + window[0]), slice(column, column + window[1])
        total[(slice(None), *place)] += normalised(scores) if softmax == "windows" else scores
        count[place] += 1
    resized = resize(total / count, *target)
    return normalised(resized) if softmax == "pixels" else resized


@pytest.mark.parametrize(("softmax", "target"), [("windows", (301, 130)), ("pixels", (7, 5))])
def test_strips_are_the_whole_at_once(monkeypatch, softmax, target):
    monkeypatch.setattr(sliding, "STRIP_BYTES", 4 * 6 * 64 * 2 * 8)  # strips of 8 rows
    size, window = (45, 61), (24, 24)
    corners = plan_windows(*size, 24, 17)
    maps = RNG.standard_normal((len(corners), 6, 3, 2)).astype(np.float32)
    mask = np.arange(6) < 5
    expected = reference(maps[:, :5], corners, window, size, target, softmax)
    views = Views(jnp.asarray(maps), corners, window, size)
    labels, confidence = label_views(views, jnp.asarray(mask), *target, softmax=softmax)
    np.testing.assert_allclose(confidence, expected.max(axis=0), atol=1e-5)
    first, second = np.sort(expected, axis=0)[[-1, -2]]
    decided = first - second > 1e-5
    np.testing.assert_array_equal(labels[decided], expected.argmax(axis=0)[decided])


@pytest.mark.parametrize(("classes", "width"), [(8, 64), (896, 768), (896, 4096), (5000, 4096)])
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 480), (512, 6000), (512, 10)])
def test_a_strip_is_bounded_whatever_the_picture(classes, width, inputs, outputs):
    strip, rows = strip_rows(classes, width, inputs, outputs)
    assert rows <= 2 * strip
    assert rows * classes * width * 4 <= sliding.STRIP_BYTES or strip == sliding.SHORTEST_STRIP


def test_many_windows_run_in_batches_of_one_size(segmenter, parameters, monkeypatch):
    expected = segmenter.segment(PICTURE, NAMES)
    monkeypatch.setattr(sliding, "WINDOWS_AT_ONCE", 4)
    model = with_recipe(segmenter, parameters)
    result = model.segment(PICTURE, NAMES)
    np.testing.assert_allclose(result.confidence, expected.confidence, atol=1e-6)
    assert model._encode._cache_size() == 1


def test_the_recipe_is_said_and_kept(segmenter, tmp_path):
    sentence = describe_zero_shot(ZeroShotConfig())
    for part in ("the backbone's patches", "windows of 384 pixels every 192", "short side 512", "80 prompts"):
        assert part in sentence
    path = segmenter.segment(PICTURE, NAMES).save(tmp_path, "a")[2]
    assert json.loads(path.read_text())["zero_shot"] == dataclasses.asdict(RECIPE)


def test_options_that_do_not_fit(segmenter, parameters):
    with pytest.raises(UserError, match="zero_shot.stride 30 is larger than zero_shot.window 24"):
        with_recipe(segmenter, parameters, stride=30)


@pytest.fixture(scope="module")
def converted(parameters, tmp_path_factory):
    """A folder as `python -m convert dinotxt` writes it, with the random towers."""
    folder = tmp_path_factory.mktemp("converted")
    towers = {name: np.asarray(value) for name, value in parameters.items() if name.startswith(TOWERS)}
    write_folder(folder, towers, "dinotxt", MODEL)
    return folder


def overrides(prefix=""):
    return [f"{prefix}zero_shot.{option}" for option in SMALL]


def test_a_converted_folder_segments_in_python(converted, segmenter):
    model = dinov3seg_jax.load(converted, overrides())
    assert isinstance(model, dinov3seg_jax.Segmenter)
    assert model.config.zero_shot == RECIPE
    np.testing.assert_array_equal(model.segment(PICTURE, NAMES).labels, segmenter.segment(PICTURE, NAMES).labels)


def test_predict_says_and_keeps_the_recipe(converted, tmp_path, capsys):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    arguments = ["--image", tmp_path / "a.png", "--classes", ", ".join(NAMES), "--out", tmp_path / "out"]
    assert predict.main([*map(str, [*arguments, "--zero_shot", "--weights", converted]), *overrides("--config.")]) == 0
    names, first, second = capsys.readouterr().out.splitlines()
    assert names.startswith(f"{len(NAMES)} classes: {NAMES[0]}")
    assert first == describe_zero_shot(RECIPE)
    assert "a.png: 70 x 50, " in second
    summary = json.loads((tmp_path / "out" / "a.json").read_text())
    assert summary["names"] == list(NAMES)
    assert summary["zero_shot"] == dataclasses.asdict(RECIPE)


def test_scores_of_a_converted_folder(converted):
    data = DataConfig(eval=DatasetConfig(split="eval", size=2, image_size=40))
    summary = evaluate(Config(data=data, zero_shot=RECIPE, report_images=1), converted)
    metrics = json.loads((converted / "zero_shot" / "metrics.json").read_text())
    assert metrics["miou"] == summary["miou"]
    assert metrics["notebook_miou"] <= metrics["miou"]
    assert metrics["zero_shot"] == dataclasses.asdict(RECIPE)
    assert metrics["images"] == 2
    assert describe_zero_shot(RECIPE) in (converted / "zero_shot" / "report.md").read_text()


def test_the_towers_of_a_run_segment_too(parameters, monkeypatch):
    def arrays(folder, beginnings):
        return {name: value for name, value in parameters.items() if name.startswith(beginnings)}

    monkeypatch.setattr(RunFolder, "config", Config(model=MODEL))
    monkeypatch.setattr(RunFolder, "arrays", arrays)
    model = open_model("run", zero_shot=True)
    assert model.config.model == MODEL
    assert set(model.parameters) == {name for name in parameters if name.startswith(("vision/", "text/"))}
    assert len(model.parameters) < len(parameters)
    monkeypatch.setattr(RunFolder, "config", Config(model=dataclasses.replace(MODEL, linear=LinearConfig(classes=3))))
    with pytest.raises(UserError, match="'run' holds a linear head, which knows no text"):
        open_model("run", zero_shot=True)


def test_folders_that_cannot_segment(converted, parameters, tmp_path):
    vision = {name: np.asarray(value) for name, value in parameters.items() if name.startswith("vision/")}
    write_folder(tmp_path, vision, "dinov3", MODEL)
    with pytest.raises(UserError, match="holds dinov3 weights without text/; zero-shot segmentation needs what"):
        dinov3seg_jax.load(tmp_path)
    no_backbone = {name: value for name, value in parameters.items() if not name.startswith("vision/backbone/")}
    with pytest.raises(UserError, match="such as 'vision/backbone/.*'; convert dinov3.txt's file and its backbone's"):
        ZeroShotSegmenter(Config(model=MODEL), no_backbone)
    with pytest.raises(UserError, match="only zero_shot.option=value can"):
        dinov3seg_jax.load(converted, ["inference.mode=whole"])
    with pytest.raises(UserError, match="did you mean 'short_side'"):
        dinov3seg_jax.load(converted, ["zero_shot.short_sid=3"])
