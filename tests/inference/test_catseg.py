"""A converted CAT-Seg in use: as it is loaded, asked, scored and refused."""

import dataclasses

import numpy as np
import pytest

import dinov3seg_jax
from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.convert.run import convert
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.export.writer import export
from dinov3seg_jax.inference.catseg import CatSegSegmenter
from dinov3seg_jax.inference.load import load, way_of
from dinov3seg_jax.inference.views.catseg import load_picture, seen_side
from dinov3seg_jax.inference.views.local_global import check_inference
from dinov3seg_jax.store.folder import open_folder
from tests.closeness import SCORES
from tests.convert.files import drawn, save

NAMES = ["grass", "wood", "sky"]
RECIPE = ["inference.image_size=64", "inference.window=48", "inference.stride=32"]


def layout() -> dict[str, tuple[int, ...]]:
    """CAT-Seg's keys at a small size, with CLIP's whole vocabulary, so that any name can be asked."""
    from tests.convert.files import official

    shapes = {key: value.shape for key, value in official("catseg_model").items()}
    start = "sem_seg_head.predictor.clip_model."
    width = shapes[f"{start}token_embedding.weight"][1]
    return shapes | {f"{start}token_embedding.weight": (49408, width), f"{start}positional_embedding": (77, width)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("catseg")
    file = save(path / "model_base.safetensors", {key: 0.1 * drawn(key, shape) for key, shape in layout().items()})
    convert("catseg", [file], path / "weights", ["late.heads=4", "late.window=3", "vision.heads=2", "text.heads=2"])
    return path / "weights"


@pytest.mark.slow
def test_a_whole_folder_is_used_as_its_manifest_says(folder):
    assert way_of(open_folder(folder)) == "whole"
    model = load(folder, RECIPE)
    assert isinstance(model, CatSegSegmenter)
    assert (model.config.inference.resize, model.config.inference.fusion) == ("catseg", "logits")
    assert "stretched to a square" in model.describe()
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    result = model.segment(image, NAMES)
    assert result.labels.shape == (40, 60)
    assert 0 <= result.labels.min() <= result.labels.max() < len(NAMES)
    alone = model.segment_many([image, image[:, ::-1]], NAMES)[0]
    np.testing.assert_array_equal(alone.labels, result.labels)


@pytest.mark.slow
def test_scores_of_every_class(folder):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    model = load(folder, RECIPE)
    plain, scored = (model.segment(image, NAMES, scores=scores) for scores in (False, True))
    np.testing.assert_array_equal(scored.labels, plain.labels)
    np.testing.assert_allclose(scored.scores.max(axis=0), plain.confidence, atol=SCORES)
    unsure = model.segment(image, NAMES, min_confidence=0.9)
    np.testing.assert_array_equal(unsure.labels, np.where(plain.confidence >= 0.9, plain.labels, 3))


OURS = ["inference.resize=short_side", "inference.all_classes=True", "inference.stride=48"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 300])
def test_our_mode_without_rejected_classes(folder, count):
    """On one square view that rejects nothing it is the published one; in chunks or at once, the same."""
    names = [f"thing {number}" for number in range(count)]
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    small = ["inference.image_size=48", "inference.window=48", "inference.mode=whole", *OURS]
    ours = load(folder, [*small, f"inference.class_chunk={count // 2}"])
    found = [np.asarray(chunk.scores)[0] for chunk in ours.score_list(image[None], ours.check_names(names).rows)]
    scores = np.concatenate(found)[:count]
    published = load(folder, ["inference.image_size=48", "inference.window=48", "inference.stride=48"])
    kept = published.config.model
    late = dataclasses.replace(kept.late, max_classes=0)
    whole = CatSegSegmenter(
        dataclasses.replace(published.config, model=dataclasses.replace(kept, late=late)), published.parameters
    )
    view, text = image[None].astype(np.float32), whole.embed(names)
    logits = whole.view_logits(view, text).kept[0]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=2e-5)
    if count > kept.late.max_classes:
        (found,) = published.view_logits(view, text).of(np.arange(count))
        assert (found == -100).all(axis=(1, 2)).sum() == count - kept.late.max_classes
        assert published.segment(image, names).labels.max() < count


@pytest.mark.slow
def test_eval_takes_the_release_s_recipe(folder, tmp_path):
    config = dinov3seg_jax.load_config(
        "catseg",
        [
            "benchmarks=",
            "data.eval.name=painted_scenes",
            "data.eval.size=1",
            "data.eval.image_size=48",
            *RECIPE,
        ],
    )
    scores = dinov3seg_jax.evaluate(config, folder)
    assert 0 <= scores["miou"] <= 100
    assert (folder / "whole" / "metrics.json").is_file()


def test_what_cannot_be(folder):
    with pytest.raises(UserError, match="no zero-shot recipe"):
        load(folder, zero_shot=True)
    with pytest.raises(UserError, match="not CAT-Seg's form"):
        load(folder, ["inference.all_classes=True"])
    config = load(folder).config
    late = dataclasses.replace(config.model.late, class_attention="full")
    softmax = dataclasses.replace(config, model=dataclasses.replace(config.model, late=late))
    with pytest.raises(UserError, match="inference.resize 'catseg' needs linear class attention"):
        CatSegSegmenter(softmax, {})
    with pytest.raises(UserError, match="only runs are exported"):
        export(folder, folder.parent / "out", [(64, 64)])
    for options, message in [
        ({"resize": "catseg"}, "goes with mode"),
        ({"view_size": 32}, "is for resize 'catseg'"),
        ({"resize": "catseg", "fusion": "logits", "view_size": 30}, "no multiple of the patch size"),
    ]:
        with pytest.raises(UserError, match=message):
            check_inference(InferenceConfig(**options), 16)


def test_sizes():
    assert load_picture(np.zeros((480, 640, 3), np.uint8), 640).shape == (640, 853, 3)
    assert load_picture(np.zeros((100, 1000, 3), np.uint8), 640).shape == (256, 2560, 3)
    published = InferenceConfig(resize="catseg", fusion="logits", stride=256)
    assert (seen_side(published, 16), seen_side(published, 14)) == (384, 336)
