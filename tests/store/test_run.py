"""What is wrong with a run's folder is one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from jax.experimental import multihost_utils

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store import run
from dinov3seg_jax.store.arrays import loading
from dinov3seg_jax.store.checksums import write_checksums
from dinov3seg_jax.store.evaluations import Evaluation, write_evaluations
from dinov3seg_jax.store.folder import open_folder
from tests.converted import write_folder
from tests.tiny import MODEL


def test_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"'.*file' is a file; name a folder that training wrote"):
        run.read_config(tmp_path / "file")
    with pytest.raises(UserError, match=r"'.*gone' does not exist; name one that training wrote"):
        run.read_config(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is not a run's folder \(it has no config.json\)"):
        run.read_config(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_a_damaged_config(tmp_path, content):
    (tmp_path / run.CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged \(.*\); restore it or train again"):
        run.read_config(tmp_path)


def test_a_config_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / run.CONFIG_FILE).write_text(json.dumps({}))

    def refuse(path, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); check its permissions"):
        run.read_config(tmp_path)


def test_a_run_without_steps(tmp_path):
    with pytest.raises(UserError, match="holds no complete checkpoint; let training reach train.checkpoint_every"):
        run.newest_step(tmp_path)


def test_steps_of_which_none_is_whole(tmp_path, monkeypatch):
    (tmp_path / "3").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in '.*' is whole \(step 3: .*\); put one back from a copy"):
        run.newest_whole(tmp_path)
    monkeypatch.setattr(run, "is_first", lambda: False)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda own: np.int32(-2))  # what the first one found
    with pytest.raises(UserError, match="is whole; process 0 says which, and what to do"):
        run.newest_whole(tmp_path)


def test_arrays_of_another_model(tmp_path):
    with (
        pytest.raises(UserError, match=r"undamaged but cannot be loaded \('norm'\); its model or optimizer is another"),
        loading(tmp_path),
    ):
        raise KeyError("norm")


@pytest.fixture
def trained(tmp_path):
    """The folder of a run with three steps, as far as their names tell, of which 4 scored best."""
    run.write_config(tmp_path, Config())
    for step in (4, 7, 9):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        write_checksums(tmp_path / "checkpoints" / str(step))
    write_evaluations(tmp_path, [Evaluation(step, "asked", {"miou": score}) for step, score in SCORES.items()])
    return tmp_path


SCORES = {4: 50.0, 6: 40.0, 9: 45.0, 10: 60.0}  # step 10 was never saved


@pytest.mark.parametrize(("name", "number"), [("newest", 9), ("best", 4), ("7", 7)])
def test_a_step_by_its_name(trained, name, number):
    folder = open_folder(trained, name)
    assert folder.number == number
    assert folder.whole_step() == trained / "checkpoints" / str(number)
    assert folder.results == (trained if name == "newest" else trained / f"step_{number}")
    assert str(folder) == (str(trained) if name == "newest" else f"{trained} (step {number})")
    assert folder.fingerprint == run.digest_of(trained / "checkpoints" / str(number) / "checksums.json")
    steps = {path.parent.name for path in folder.files()[1:]}
    assert steps == ({"4", "7", "9"} if name == "newest" else {str(number)})
    assert open_folder(folder) is folder


@pytest.mark.parametrize("name", ["8", "-4", "latest", "4.0", "\u00b2"])
def test_steps_that_there_are_not(trained, name):
    with pytest.raises(UserError, match=f"has no step '{name}'; name newest or one of 4, 7, 9, or best.$"):
        open_folder(trained, name).whole_step()


def test_no_best_step(trained):
    shutil.rmtree(trained / "checkpoints" / "4")
    with pytest.raises(UserError, match="the best step of '.*' is 4, which is gone; name newest or one of 7, 9.$"):
        open_folder(trained, "best").arrays()
    (trained / "evaluations.json").unlink()
    with pytest.raises(
        UserError, match=r"has no best step, as nothing was scored while it trained \(train.eval_every\)"
    ):
        open_folder(trained, "best").arrays()
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(UserError, match="has no step '7'; no step is finished yet.$"):
        open_folder(trained, "7").progress()
    (trained / "config.json").unlink()
    with pytest.raises(UserError, match="is not a run's folder"):
        open_folder(trained, "best").arrays()


def test_a_damaged_step_that_was_named_is_not_replaced(trained):
    (trained / "checkpoints" / "4" / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"4' is damaged: it has no checksums.json; name another step: 7, 9.$"):
        open_folder(trained, "best").progress()


def test_converted_weights_have_no_steps(tmp_path):
    write_folder(tmp_path / "towers", {"text/one": np.ones(2, np.float32)}, "dinotxt", MODEL)
    with pytest.raises(UserError, match="holds converted weights, which have no steps; leave the step out"):
        open_folder(tmp_path / "towers", "best")
