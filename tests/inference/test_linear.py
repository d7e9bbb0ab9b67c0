"""What a linear head cannot do is said before it is asked to; its labels are tested with its training."""

import dataclasses

import pytest

from dinov3seg_jax.config import Config, InferenceConfig, LinearConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.linear import LinearSegmenter
from tests.tiny import MODEL

PROBE = dataclasses.replace(MODEL, linear=LinearConfig(classes=3))


def segmenter(**options):
    options = {"mode": "slide", "image_size": 32, "window": 32, "stride": 16} | options
    return LinearSegmenter(Config(model=PROBE, inference=InferenceConfig(**options)), {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "local_global"}, "'local_global' is not for a linear head; set it to 'slide' or 'whole'"),
        ({"stride": 48}, "stride 48 is larger than inference.window 32 and leaves gaps; use 32 or less"),
    ],
)
def test_options_that_are_not_for_a_linear_head(options, message):
    with pytest.raises(UserError, match=message):
        segmenter(**options)


@pytest.mark.parametrize("names", ["cat, dog", "cat, dog, sky, sea"])
def test_a_head_has_as_many_names_as_classes(names):
    assert segmenter().check_names("cat, dog, sky").names == ("cat", "dog", "sky")
    with pytest.raises(
        UserError, match=r"\d class names were given and the linear head has 3 classes; name those that"
    ):
        segmenter().check_names(names)
