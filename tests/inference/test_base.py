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
