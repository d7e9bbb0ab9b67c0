"""Names and masks that cannot be used stop a run before it takes minutes or leaves a file."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax import processes
from dinov3seg_jax.config import Config, DataConfig, DatasetConfig, LinearConfig, TrainConfig
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.prompts import check_names
from dinov3seg_jax.text.tokenizer import Tokenizer
from dinov3seg_jax.training import data_check, loop
from dinov3seg_jax.training.data_check import CENSUS_FILE, DataCheck
from dinov3seg_jax.training.loop import train
from tests.tiny import MODEL

LONG = " ".join(["very"] * 100)


def config(root, names=("cat", "dog"), ids=(1, 2), values=(1, 2, 0, 255), **changes):
    """Of a run on two pictures; changes of "train" or of the run."""
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.new("RGB", (len(values), 1)).save(root / f"images/train/{number}.png")
        Image.fromarray(np.array([values], np.uint8)).save(root / f"masks/train/{number}.png")
    listed = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    (root / "classes.json").write_text(json.dumps(listed))
    of_train = {name: changes.pop(name) for name in list(changes) if hasattr(TrainConfig, name)}
    data = DataConfig(train=DatasetConfig(name="folder", root=str(root)), crop_size=32, short_side=(32, 32))
    options = {"model": MODEL, "workdir": str(root / "run")} | changes
    return Config(data=data, train=dataclasses.replace(TrainConfig(steps=2, batch_size=2), **of_train), **options)


@pytest.fixture
def nothing_begins(monkeypatch):
    """No model is described, and no folder of checkpoints made."""

    def begin(*_):
        raise AssertionError("a run began")

    monkeypatch.setattr(loop, "describe_step", begin)
    monkeypatch.setattr(loop, "Checkpoints", begin)


@pytest.mark.parametrize("alignment_steps", [0, 2])
@pytest.mark.parametrize(
    "names", [("Grass", "grass"), ("cat", LONG), ("cat", "x<|startoftext|>"), ("cat", "gra\u200bss"), ("a, b", "a, c")]
)
def test_names_that_scoring_refuses(tmp_path, nothing_begins, names, alignment_steps):
    with pytest.raises(UserError) as scoring:
        check_names(names, Tokenizer())
    with pytest.raises(UserError) as caught:
        train(config(tmp_path, names, alignment_steps=alignment_steps))
    assert str(caught.value) == f"in {tmp_path / 'classes.json'}, {scoring.value}"
    assert not (tmp_path / "run").exists()


def test_names_are_checked_in_all_templates_and_for_the_models_own_length(tmp_path, nothing_begins):
    fits = config(tmp_path, ("cat", "big dog"))
    templates = ("{}", "a rather long story of a {} in the scene")
    short = dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, context_length=12))
    asked = dataclasses.replace(fits, inference=dataclasses.replace(fits.inference, templates=templates), model=short)
    with pytest.raises(UserError, match="'big dog' makes a prompt of 13 tokens and only 12 fit"):
        train(asked)


def test_a_linear_head_is_not_asked_for_names(tmp_path):
    linear = dataclasses.replace(MODEL, linear=LinearConfig(classes=2))
    asked = config(tmp_path, ("Grass", "grass"), model=linear)
    DataCheck(asked, open_dataset(asked.data.train))


@pytest.mark.parametrize("alignment_steps", [0, 2])
def test_masks_that_say_nothing(tmp_path, nothing_begins, alignment_steps):
    asked = config(tmp_path, ["wood"], [1], (0, 255, 0, 255), alignment_steps=alignment_steps)
    with pytest.raises(UserError, match="labels a single pixel: .* say id 255 in classes.json instead of 1"):
        train(asked)
    assert not (tmp_path / "run").exists()


class KilledError(Exception):
    """Stands for the end of a process."""


def test_a_resumed_run_does_not_look_again(tmp_path, monkeypatch, capsys):
    def die(*_):
        raise KilledError

    asked, look = config(tmp_path, values=(1, 1, 0, 0)), data_check.check_masks
    monkeypatch.setattr(loop, "take_up", die)
    with pytest.raises(KilledError):
        train(asked)
    said = capsys.readouterr().err
    assert said.startswith(
        f"note: 1 of 2 classes in {tmp_path / 'classes.json'} never occurs in the masks (2 of 2 read)"
    )
    found = json.loads((tmp_path / "run" / CENSUS_FILE).read_text())
    assert (found["masks"], found["of"], found["pixels"]) == (2, 2, {"0": 4, "1": 4})

    looked = []
    monkeypatch.setattr(data_check, "check_masks", lambda *arguments: looked.append(1) or look(*arguments))
    with pytest.raises(KilledError):
        train(asked)
    assert not looked
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "run" / CENSUS_FILE).read_text()) == found
    Image.fromarray(np.array([[1, 1, 1, 1]], np.uint8)).save(tmp_path / "masks/train/0.png")
    with pytest.raises(KilledError):
        train(asked)
    assert len(looked) == 1, "masks were mended"
    (tmp_path / "run" / CENSUS_FILE).write_text("[")
    with pytest.raises(KilledError):
        train(asked)
    assert len(looked) == 2, "the file is damaged"
    config(tmp_path, ids=(0, 1))
    with pytest.raises(UserError, match="holds the value 2, which is no class"):
        train(asked)
    assert len(looked) == 3, "ids changed"


@pytest.mark.parametrize(
    ("options", "devices", "message"),
    [
        ({"batch_size": 3, "accumulate": 2}, 0, "over . devices in 2 parts; set --config.train.batch_size=[0-9]+.$"),
        ({"batch_size": 2}, 3, "over 3 devices; set --config.train.batch_size=3, or .* --config.model_parallel=3.$"),
        ({"batch_size": 4}, 8, "over 8 devices; set --config.train.batch_size=8, or .* --config.model_parallel=2.$"),
    ],
)
def test_a_batch_that_devices_cannot_share_is_refused(tmp_path, monkeypatch, options, devices, message):
    asked, mesh = config(tmp_path, **options), loop.make_mesh()
    if devices:
        more = {"shape": mesh.shape | {"data": devices}, "size": devices}
        monkeypatch.setattr(loop, "make_mesh", lambda *_, **__: type("Mesh", (), more))
    with pytest.raises(UserError, match=f"cannot be shared out {message}"):
        train(asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("places", "said"), [(0, False), (1, True), (2, True), (3, False), (9, False)])
def test_class_lists_too_short_for_a_mask_are_said(tmp_path, capsys, places, said):
    asked = config(tmp_path, ("cat", "dog", "cow"), (1, 2, 3), (1, 2, 2, 255))
    asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, classes_per_image=places))
    DataCheck(asked, open_dataset(asked.data.train))
    note = f"note: a mask shows 2 classes, and data.classes_per_image is {places}: where a crop shows as many, no other"
    assert (note in capsys.readouterr().err) == said


def test_a_list_of_all_names_leaves_none_out(tmp_path, capsys):
    asked = config(tmp_path)
    DataCheck(
        dataclasses.replace(asked, data=dataclasses.replace(asked.data, classes_per_image=2)),
        open_dataset(asked.data.train),
    )
    assert capsys.readouterr().err == ""


def test_painted_scenes_leave_no_census(tmp_path):
    asked = Config(model=MODEL, workdir=str(tmp_path))
    DataCheck(asked, open_dataset(asked.data.train)).write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("fails", [False, True])
def test_of_several_processes_one_looks_and_all_of_them_stop(monkeypatch, process, fails):
    looked = []

    def check():
        looked.append(1)
        if fails:
            raise UserError("nothing is labelled; label it.")

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: process)
    heard = []
    monkeypatch.setattr("jax.experimental.multihost_utils.sync_global_devices", heard.append)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.broadcast_one_to_all",
        lambda failed: heard.append(failed) or np.bool_(fails),  # what process 0 says
    )
    if fails:
        with pytest.raises(UserError, match="nothing is labelled" if process == 0 else "process 0 cannot use the data"):
            processes.check_once(check)
    else:
        processes.check_once(check)
    assert len(looked) == (process == 0)
    assert heard == ["before a check", fails and process == 0], "every process takes part, so that none waits in vain"
