"""The recipe that begins with a model takes the model's options from its folder."""

import dataclasses
import json

import pytest

from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.converted import Manifest, write_manifest
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.store.starting import starting_config
from tests.tiny import MODEL


def converted(folder, model, arrays, **sections):
    folder.mkdir()
    held = {name: {"shape": [1], "sha256": ""} for name in arrays}
    write_manifest(folder, Manifest("clip", "custom", 1, [], [], json.loads(json.dumps(model)), held, sections))
    return str(folder)


@pytest.fixture
def run(tmp_path):
    """A run's folder, as far as its options go."""
    config = load_config("quickstart", [f"workdir={tmp_path / 'run'}", "init_from=towers"])
    write_config(tmp_path / "run", dataclasses.replace(config, model=MODEL))
    return tmp_path / "run"


def test_the_options_of_a_run(run):
    config = load_config(f"finetune:{run}", ["data.train.root=pictures"])
    assert config == load_config("finetune", [f"init_from={run}", "data.train.root=pictures"])
    assert config.model == MODEL
    assert config.init_from == str(run)
    assert (config.inference.image_size, config.inference.window, config.inference.stride) == (160, 96, 32)
    assert (config.data.crop_size, config.data.short_side) == (96, (96, 160))
    assert config.train.learning_rate == pytest.approx(5e-4)
    assert (config.train.finetune, config.train.alignment_steps, config.data.validation) == ("lora", 0, 0.2)
    assert load_config(f"finetune:{run}", ["train.finetune=none"]).train.finetune == "none"


def test_the_options_of_converted_folders(tmp_path):
    vision = {"dim": 64, "depth": 2, "heads": 2, "patch_size": 14}
    towers = converted(tmp_path / "towers", {"towers": "clip", "vision": vision}, ["vision/norm/scale"])
    config = load_config(f"finetune:{towers}")
    assert (config.model.towers, config.model.vision.dim, config.model.spe) == ("clip", 64, "vision")
    assert (config.data.crop_size, config.data.short_side) == (336, (336, 560))
    assert (config.inference.image_size, config.inference.window, config.inference.stride) == (560, 336, 112)
    sam = converted(tmp_path / "sam", {"sam": {"dim": 32, "heads": 2}}, ["sam/neck/scale"])
    both = load_config(f"finetune:{towers},{sam}")
    assert (both.model.vision.dim, both.model.sam.dim, both.model.spe) == (64, 32, "sam")


def test_a_converted_model_that_says_how_it_is_asked(tmp_path):
    whole = {"spe": "none", "vision": {"dim": 64, "heads": 2}}
    folder = converted(tmp_path / "whole", whole, ["decoder/head"], inference={"resize": "catseg", "stride": 256})
    config = load_config(f"finetune:{folder}")
    assert (config.model.spe, config.inference.resize, config.inference.stride) == ("none", "catseg", 256)
    assert config.inference.image_size == Config().inference.image_size
    assert config.data.crop_size == 384


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", "begins with a model; name its folder"),
        (",", "names no folder"),
        ("nowhere", "checkpoint folder 'nowhere' does not exist"),
        ("{tmp}", "is not a run's folder"),
    ],
)
def test_a_word_that_names_no_model(tmp_path, name, part):
    with pytest.raises(UserError, match=part):
        starting_config(name.format(tmp=tmp_path))
    with pytest.raises(UserError, match=part):
        load_config(f"finetune:{name.format(tmp=tmp_path)}")
