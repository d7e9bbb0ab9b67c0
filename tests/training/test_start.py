"""A new run starts from the parts that folders hold and draws the rest; what does not fit is refused before that."""

import dataclasses

import jax
import numpy as np
import pytest

from dinov3seg_jax.config import Config, TextConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import build, initialize
from dinov3seg_jax.store import safetensors
from dinov3seg_jax.store.converted import WEIGHTS_FILE, Manifest, write_manifest
from dinov3seg_jax.store.folder import load_parameters
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.sharding import make_mesh, parameter_shardings
from dinov3seg_jax.training.start import first_parameters
from tests.tiny import MODEL

SMALL = dataclasses.replace(
    MODEL,
    vision=dataclasses.replace(MODEL.vision, depth=2),
    text=TextConfig(dim=16, depth=2, heads=2, vocab_size=64, context_length=8),
)
SECTIONS = {"vision": {"dim": 32, "depth": 2, "heads": 2, "head_blocks": 0}, "text": {"dim": 16, "heads": 2}}


@pytest.fixture(scope="module")
def weights():
    return initialize(SMALL, jax.random.key(5))


def converted(folder, weights, prefix):
    """A folder with some of the weights, as `python -m convert` leaves it."""
    folder.mkdir()
    arrays = {name: np.asarray(value) for name, value in weights.items() if name.startswith(prefix)}
    entries = safetensors.create(folder / WEIGHTS_FILE, {name: value.shape for name, value in arrays.items()})
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        for name, value in arrays.items():
            safetensors.write_part(file, entries[name], None, value)
    section = prefix.split("/")[0]
    shapes = {name: {"shape": list(value.shape), "sha256": ""} for name, value in arrays.items()}
    write_manifest(folder, Manifest("test", "tiny", 1, [], [], {section: SECTIONS[section]}, shapes))
    return folder


def start(model=SMALL, *folders):
    config = Config(model=model, init_from=", ".join(map(str, folders)), seed=9)
    return first_parameters(config, parameter_shardings(build(model)[1], make_mesh()))


def assert_from(parameters, weights, prefixes):
    for name, value in weights.items():
        # What is drawn as a constant is the same in any draw.
        if name.startswith(prefixes):
            np.testing.assert_array_equal(parameters[name], value, err_msg=name)
        elif np.std(value) > 0.01 and not name.endswith("periods"):
            assert (np.asarray(parameters[name]) != value).any(), name


def test_nothing_to_start_from_is_a_draw_by_the_seed():
    assert_from(start(), initialize(SMALL, jax.random.key(9)), ("",))


def test_parts_from_folders_and_the_rest_at_random(weights, tmp_path, capsys):
    vision, text = converted(tmp_path / "v", weights, "vision/"), converted(tmp_path / "t", weights, "text/")
    parameters = start(SMALL, vision, text)
    assert list(parameters) == list(build(SMALL)[1])
    assert {name: np.shape(value) for name, value in parameters.items()} == {
        name: np.shape(value) for name, value in weights.items()
    }
    assert_from(parameters, weights, ("vision/", "text/"))
    printed = capsys.readouterr().out
    assert f"from {vision}: vision/backbone\n" in printed
    assert f"from {text}: text\n" in printed
    assert "drawn at random: decoder, embed_correlation, guidance, late, project_text\n" in printed


def test_a_part_of_a_tower(weights, tmp_path):
    text = converted(tmp_path / "t", weights, "text/blocks/")
    assert_from(start(SMALL, text), weights, ("text/blocks/",))


@pytest.mark.slow
def test_a_run_and_its_parts_hold_the_same(weights, tmp_path):
    run = tmp_path / "run"
    write_config(run, Config(model=SMALL))
    checkpoints = Checkpoints(run, keep=1)
    placed = {name: jax.numpy.asarray(value) for name, value in weights.items()}
    checkpoints.save(1, placed, [jax.numpy.zeros(1)], {"data": {"next_index": 0}, "train_seconds": 0.0})
    checkpoints.close()
    assert_from(start(SMALL, run), weights, ("",))
    with pytest.raises(UserError, match="holds text, as a folder before it does"):
        start(SMALL, run, converted(tmp_path / "t", weights, "text/"))
    # A model that differs beyond the encoders takes those, and the rest is drawn.
    parameters = start(dataclasses.replace(SMALL, correlation="local"), run)
    shared = {name: value for name, value in weights.items() if np.shape(value) == parameters[name].shape}
    assert "embed_correlation/kernel" not in shared
    assert_from(parameters, shared, ("vision/", "text/"))


def test_parts_of_another_model_are_refused(weights, tmp_path):
    vision = converted(tmp_path / "v", weights, "vision/")
    other = dataclasses.replace(SMALL, vision=dataclasses.replace(SMALL.vision, heads=4))
    with pytest.raises(UserError, match=r"model.vision.heads=2, not 4"):
        start(other, vision)
    with pytest.raises(UserError, match="does not exist"):
        start(SMALL, vision, tmp_path / "gone")


def test_a_part_that_two_folders_hold_is_refused(weights, tmp_path):
    folders = [converted(tmp_path / name, weights, "text/") for name in ("t", "u")]
    with pytest.raises(UserError, match=f"init_from '{folders[1]}' holds text, as a folder before it does; name one"):
        start(SMALL, *folders)


def test_a_converted_folder_loads_as_its_part_of_a_model(weights, tmp_path):
    config, parameters = load_parameters(converted(tmp_path / "v", weights, "vision/"))
    assert config.model.vision == dataclasses.replace(SMALL.vision, layerscale_init=1e-5)
    assert_from(parameters, {name: value for name, value in weights.items() if name in parameters}, ("vision/",))


@pytest.mark.parametrize(("section", "option", "ours"), [("vision", "depth", 1), ("text", "heads", 4)])
def test_a_run_of_other_encoders_is_refused_before_its_arrays_are_read(tmp_path, section, option, ours):
    write_config(tmp_path / "run", Config(model=SMALL))
    changed = dataclasses.replace(getattr(SMALL, section), **{option: ours})
    message = f"is a run with model.{section}.{option}=2, not {ours}; set --config.model.{section}.{option}=2"
    with pytest.raises(UserError, match=message):
        start(dataclasses.replace(SMALL, **{section: changed}), tmp_path / "run")


def test_a_list_of_no_folders():
    with pytest.raises(
        UserError, match="init_from ' ,  ' names no folder; name one, or leave it out for random weights"
    ):
        start(SMALL, " ", " ")
