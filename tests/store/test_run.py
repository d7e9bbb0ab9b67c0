"""What is wrong with a run's folder is one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from jax.experimental import multihost_utils

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store import run
from dinov3seg_jax.store.arrays import loading


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
