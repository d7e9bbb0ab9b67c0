"""What every segmenter promises, whichever serves a folder."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import dinov3seg_jax
from dinov3seg_jax.config import Config, InferenceConfig, LinearConfig, ZeroShotConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.device.sharing import on_own_pictures
from dinov3seg_jax.inference.linear import LinearSegmenter
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.inference.zero_shot import ZeroShotSegmenter
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.pictures.huge import segment_file
from dinov3seg_jax.text.class_lists import ClassList
from tests.closeness import SCORES
from tests.tiny import MODEL

NAMES = ("grass", "wood", "sky")
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def segmenters(model, config, parameters):
    probe = dataclasses.replace(MODEL, linear=LinearConfig(classes=3))
    inference = InferenceConfig(mode="slide", image_size=32, window=32, stride=16)
    zero_shot = ZeroShotConfig(short_side=32, window=32, stride=16, templates="paper")
    return {
        Segmenter: model,
        ZeroShotSegmenter: ZeroShotSegmenter(dataclasses.replace(config, zero_shot=zero_shot), parameters),
        LinearSegmenter: LinearSegmenter(
            Config(model=probe, inference=inference), initialize(probe, jax.random.key(0))
        ),
    }


@pytest.mark.parametrize("kind", [Segmenter, ZeroShotSegmenter, LinearSegmenter])
def test_promises(segmenters, kind):
    segmenter = segmenters[kind]
    assert isinstance(segmenter, dinov3seg_jax.Segmenter)
    assert segmenter.check_names("grass, wood, sky") == segmenter.check_names(list(NAMES)) == ClassList.of(NAMES)
    result = segmenter.segment(PICTURE, NAMES)
    assert result.labels.shape == (40, 56)
    (same,) = segmenter.segment_arrays([PICTURE], NAMES)
    np.testing.assert_array_equal(same.labels, result.labels)
    (section,) = segmenter.recipe
    assert segmenter.recipe[section] == dataclasses.asdict(getattr(segmenter.config, section))
    assert segmenter.describe().endswith(".")
    assert segmenter.held_bytes() >= sum(value.nbytes for value in segmenter.parameters.values())
    assert segmenter.view_bytes() > 0


@pytest.mark.parametrize("kind", [Segmenter, ZeroShotSegmenter, LinearSegmenter])
def test_scores_of_every_class(segmenters, kind):
    """Each pixel's confidence is the greatest of its scores, and its label says whose."""
    plain, scored = (segmenters[kind].segment(PICTURE, NAMES, scores=scores) for scores in (False, True))
    assert plain.scores is None
    assert (scored.scores.shape, scored.scores.dtype) == ((3, 40, 56), np.float32)
    np.testing.assert_array_equal(scored.labels, plain.labels)
    np.testing.assert_array_equal(scored.confidence, plain.confidence)
    np.testing.assert_allclose(scored.scores.max(axis=0), scored.confidence, atol=SCORES)
    own = np.take_along_axis(scored.scores, scored.labels[None], axis=0)[0]
    np.testing.assert_allclose(own, scored.confidence, atol=SCORES)


@pytest.mark.parametrize("kind", [Segmenter, ZeroShotSegmenter, LinearSegmenter])
def test_below_the_threshold_pixels_are_unknown(segmenters, kind):
    plain = segmenters[kind].segment(PICTURE, NAMES)
    threshold = float(np.median(plain.confidence))
    for result in (
        segmenters[kind].segment(PICTURE, NAMES, min_confidence=threshold, unknown="none of these", scores=True),
        *segmenters[kind].segment_many([PICTURE], NAMES, min_confidence=threshold, unknown="none of these"),
    ):
        assert result.names == (*NAMES, "none of these")
        sure = plain.confidence >= threshold
        assert 0.4 < sure.mean() < 0.6
        np.testing.assert_array_equal(result.labels, np.where(sure, plain.labels, 3))
        np.testing.assert_array_equal(result.confidence, plain.confidence)
        assert result.colors.tolist()[3] == [128, 128, 128]
        np.testing.assert_array_equal(result.colors[:3], plain.colors)
        assert result.summary()["classes"][3]["pixels"] == (~sure).sum()
    same = segmenters[kind].segment(PICTURE, NAMES, min_confidence=0)
    assert same.names == NAMES
    np.testing.assert_array_equal(same.labels, plain.labels)


@pytest.mark.parametrize("kind", [Segmenter, ZeroShotSegmenter])
def test_names_of_one_class_and_the_background(segmenters, kind):
    """With "best", and in the background, a class is where one of its names would be if all were classes."""
    flat = segmenters[kind].segment(PICTURE, "grass, meadow, wood, sky, sea", scores=True)
    asked = segmenters[kind].segment(
        PICTURE, "wood|timber|WOOD, meadow|grass", background="sea, sky", synonyms="best", scores=True
    )
    assert asked.names == ("wood", "meadow", "background")
    timber = segmenters[kind].segment(PICTURE, "wood, timber, meadow, grass, sea, sky", scores=True)
    expected = np.array([0, 0, 1, 1, 2, 2])[timber.labels]
    np.testing.assert_array_equal(asked.labels, expected)
    np.testing.assert_array_equal(asked.confidence, timber.confidence)
    for place, rows in enumerate(([0, 1], [2, 3], [4, 5])):
        np.testing.assert_array_equal(asked.scores[place], timber.scores[rows].max(axis=0))
    merged = segmenters[kind].segment(PICTURE, "grass, meadow, wood", background="sky, sea")
    np.testing.assert_array_equal(merged.labels, np.minimum(flat.labels, 3))


@pytest.mark.parametrize("synonyms", ["mean", "best"])
def test_synonyms_may_be_permuted_and_doubled(model, synonyms):
    first = model.segment(PICTURE, "grass|lawn|meadow, sky", synonyms=synonyms)
    other = model.segment(PICTURE, "meadow|grass|LAWN|grass, sky", synonyms=synonyms)
    assert (first.names, other.names) == (("grass", "sky"), ("meadow", "sky"))
    np.testing.assert_array_equal(other.labels, first.labels)
    np.testing.assert_allclose(other.confidence, first.confidence, atol=SCORES)
    twice, once = (model.segment(PICTURE, names, synonyms=synonyms) for names in ("grass|grass, sky", "grass, sky"))
    np.testing.assert_array_equal(twice.labels, once.labels)
    np.testing.assert_array_equal(twice.confidence, once.confidence)


def test_a_prompt_of_ones_own_and_a_colour(model):
    rows = [{"name": "grass", "prompt": "A photo of a {} in the scene", "color": "#aa3300"}, ("sky",), "wood"]
    named = model.segment(PICTURE, rows)
    plain = model.segment(PICTURE, ["grass", "sky", "wood"])
    np.testing.assert_array_equal(named.labels, plain.labels)  # it is the model's template
    assert named.colors.tolist() == [[170, 51, 0], *plain.colors[1:].tolist()]
    other = model.embed(ClassList.of([{"name": "grass", "prompt": "all is green here"}]).rows)
    assert np.abs(other - model.embed(["grass"])).max() > 0.01


def test_tile_by_tile_whatever_the_recipe_says(model, tiled):
    asked = ClassList.of(NAMES, min_confidence=0.5)
    (found,), expected = model.segment_in_tiles([PICTURE], asked), tiled.segment(PICTURE, asked)
    assert found.names == (*NAMES, "unknown")
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_what_models_do_not_take(segmenters, tiled):
    with pytest.raises(UserError, match="not tile by tile; set inference.resize to"):
        tiled.segment(PICTURE, NAMES, scores=True)
    for kind in (ZeroShotSegmenter, LinearSegmenter):
        assert segmenters[kind].confidence_kind == "softmax"
    with pytest.raises(UserError, match="a single name has all of it, so that nothing is ever below min_confidence"):
        segmenters[ZeroShotSegmenter].segment(PICTURE, "zebra", min_confidence=0.3)
    for options in ({"background": "sea"}, {"names": "grass|lawn, wood, sky"}):
        with pytest.raises(UserError, match="a linear head knows the classes that it was trained on"):
            segmenters[LinearSegmenter].segment(PICTURE, **({"names": NAMES} | options))


def test_several_pictures_of_any_kind(segmenters, tmp_path):
    segmenter = segmenters[Segmenter]
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    expected = segmenter.segment(PICTURE, NAMES).labels
    kinds = [PICTURE, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(PICTURE)]
    for result in segmenter.segment_many(kinds, NAMES, batch_size=2):
        np.testing.assert_array_equal(result.labels, expected)
    for images in (np.stack([PICTURE] * 2), (picture for picture in [PICTURE] * 2)):
        assert len(segmenter.segment_arrays(images, {0: "grass", 1: "wood"})) == 2


@pytest.mark.parametrize("kind", [Segmenter, ZeroShotSegmenter, LinearSegmenter])
@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        (PICTURE, 1, "the pictures are of the type ndarray; give a list, or use segment for one"),
        ("a.png", 1, "of the type str"),
        (None, 1, "of the type NoneType"),
        ([PICTURE / 255], 1, r"picture 1 of 1 is float64 \[40, 56, 3\]; give RGB bytes"),
        ([PICTURE, "a.png"], 1, "picture 2 of 2 is str; give RGB bytes.*segment_many"),
        ([PICTURE[..., 0]], 1, r"is uint8 \[40, 56\]"),
        ([PICTURE[..., [0, 1, 2, 0]]], 1, r"is uint8 \[40, 56, 4\]"),
        ([PICTURE[:0]], 1, "has no pixels"),
        ([PICTURE], 0, "the batch size is 0; give a whole number above 0"),
        ([PICTURE], 1.5, "the batch size is 1.5"),
        ([PICTURE], True, "the batch size is True"),
    ],
)
def test_what_are_no_arrays(segmenters, kind, images, batch_size, message):
    with pytest.raises(UserError, match=message):
        segmenters[kind].segment_arrays(images, NAMES, batch_size)


def test_one_picture_and_no_list(segmenters):
    with pytest.raises(UserError, match="the picture is a list; give one picture, or use segment_many"):
        segmenters[Segmenter].segment([PICTURE, PICTURE], NAMES)


def test_capabilities(segmenters, tmp_path):
    able = {kind for kind, segmenter in segmenters.items() if segmenter.tiles is not None}
    assert able == {kind for kind in segmenters if kind.shares_devices} == {Segmenter}
    with pytest.raises(UserError, match="this model sees whole pictures only"):
        segment_file(segmenters[ZeroShotSegmenter], tmp_path / "a.png", NAMES, tmp_path, "a", 2**40)


def test_only_a_model_that_resizes_to_many_sizes_groups_pictures_by_them(segmenters, config, parameters):
    """One that runs each picture by itself would otherwise wait for others of its size, for nothing."""
    short_side = dataclasses.replace(config, inference=dataclasses.replace(config.inference, resize="short_side"))
    shapes = {Segmenter(short_side, parameters).batch_shape(*size) for size in ((40, 56), (56, 40), (80, 112))}
    assert shapes == {(48, 64), (64, 48)}
    for kind in (ZeroShotSegmenter, LinearSegmenter):
        assert len({segmenters[kind].batch_shape(*size) for size in ((40, 56), (56, 40))}) == 1


def test_a_common_argument_that_there_is_not_is_found_before_it_matters():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("pictures",))
    with pytest.raises(ValueError, match="has no argument parametres"):
        on_own_pictures(mesh, common=("parametres",))(lambda parameters, images: images)
