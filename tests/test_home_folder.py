"""A path that begins with "~" means the home folder, whoever is given it; nobody makes a folder of that name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinov3seg_jax
from dinov3seg_jax.cli import predict
from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.config_files import find_recipe
from dinov3seg_jax.convert.sources import open_source
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.images import as_array
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation.evaluate import report_folder
from dinov3seg_jax.export.scorer import load as load_exported
from dinov3seg_jax.export.writer import export
from dinov3seg_jax.files import expanded
from dinov3seg_jax.pictures.huge import segment_file
from dinov3seg_jax.places import cache_folder
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.text.class_lists import names_of
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.loop import towers_alone, train

NAMES = ("grass", "wood")
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory, config, parameters):
    """A home folder with a picture, a list of names, and a run."""
    folder = tmp_path_factory.mktemp("home")
    Image.fromarray(PICTURE).save(folder / "a.png")
    (folder / "names.txt").write_text("grass\nwood")
    (folder / "recipe.py").touch()
    write_config(folder / "run", config)
    checkpoints = Checkpoints(folder / "run", keep=1)
    checkpoints.save(1, parameters, [np.zeros(1)], {"data": {"next_index": 0}, "train_seconds": 0.0})
    checkpoints.close()
    return folder


@pytest.fixture(autouse=True)
def _inside(home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []  # above all, no folder "~"


def test_what_is_read(home, monkeypatch):
    model = dinov3seg_jax.load("~/run")
    np.testing.assert_array_equal(as_array("~/a.png"), PICTURE)
    assert model.segment("~/a.png", "@~/names.txt").names == NAMES
    assert names_of(Path("~/names.txt")) == NAMES
    assert find_recipe("~/recipe.py") == home / "recipe.py"
    assert report_folder(Path("~/run"), zero_shot=False) == home / "run"
    monkeypatch.setenv("DINOV3SEG_CACHE", "~/cache")
    assert cache_folder() == home / "cache"


def test_what_is_written(home, model):
    paths = model.segment(PICTURE, NAMES).save("~/saved", "a")
    assert paths[0] == home / "saved" / "a_overlay.png"
    segment_file(model, "~/a.png", NAMES, "~/tiled", "a", 2**33)
    assert (home / "tiled" / "a_labels.png").is_file()


def test_options_of_a_command(home):
    words = ["--image=~/a.png", "--classes=~/names.txt", "--checkpoint=~/run", "--out=~/preds"]
    assert predict.main(words) == 0
    assert (home / "preds" / "a.json").is_file()


@pytest.mark.parametrize(
    "use",
    [
        lambda config: open_source(["~/absent.safetensors"]),
        lambda config: open_dataset(DatasetConfig(name="folder", root="~/absent")),
        lambda config: prepare("ade20k_150", ["~/absent"], "~/prepared"),
        lambda config: train(dataclasses.replace(config, workdir="~/run")),
        lambda config: dinov3seg_jax.load("~/absent"),
    ],
)
def test_messages_name_the_whole_path(home, config, use):
    with pytest.raises(UserError, match=str(home)):
        use(config)


def test_exports(home):
    with pytest.raises(UserError, match="'~/run' exists"):
        export("~/run", "~/run")
    (home / "export.json").write_text("{}")
    with pytest.raises(UserError, match="'~' is damaged"):
        load_exported("~")


def test_the_run_of_the_towers_lies_in_the_run(home, config):
    train = dataclasses.replace(config.train, alignment_steps=1)
    towers = towers_alone(dataclasses.replace(config, workdir="~/run", train=train))
    assert towers.workdir == str(home / "run" / "towers")


def test_a_home_that_is_not_there():
    with pytest.raises(UserError, match="begins with a home folder that is not there"):
        expanded("~nobody-of-this-name/a.png")
