"""A converted linear head and its backbone, which must be named, and belong together."""

import dataclasses

import numpy as np
import pytest

from dinov3seg_jax.config import Config, LinearConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.load import open_model
from dinov3seg_jax.models.graph import build
from tests.converted import write_folder
from tests.tiny import MODEL

PROBE = dataclasses.replace(MODEL, linear=LinearConfig(classes=3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of the head and of the backbone."""
    parent = tmp_path_factory.mktemp("converted")
    arrays = {name: np.zeros(leaf.shape, np.float32) for name, leaf in build(PROBE)[1].items()}
    for name in ("linear", "vision"):
        part = {key: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        write_folder(parent / name, part, "linear" if name == "linear" else "dinov3", PROBE)
    return parent / "linear", parent / "vision"


def test_a_head_and_its_backbone(folders):
    head, backbone = folders
    model = open_model(head, around=Config(model=PROBE, init_from=str(backbone)))
    assert model.way == "linear"
    assert model.parameters.keys() == build(PROBE)[1].keys()


def test_a_head_alone(folders):
    with pytest.raises(
        UserError, match="linear' is a linear head alone; set --config.init_from= to its converted back"
    ):
        open_model(folders[0], around=Config(model=PROBE))


def test_a_model_without_a_head(folders):
    head, backbone = folders
    with pytest.raises(
        UserError, match="linear' is a linear head; set --config.model.linear.classes, as configs/linear"
    ):
        open_model(head, around=Config(model=MODEL, init_from=str(backbone)))


def test_a_backbone_that_is_none(folders):
    head, _ = folders
    with pytest.raises(UserError, match="lack 'vision/backbone/.*'; name the backbone that the head belongs to"):
        open_model(head, around=Config(model=PROBE, init_from=str(head)))
