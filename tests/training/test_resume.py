"""A run begins in no folder that holds another model; what a run may change is in test_loop.py."""

from operator import attrgetter

import numpy as np
import pytest

from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import EXPORT_FILE
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.training.resume import RESUMABLE, refuse_other_run
from tests.converted import write_folder
from tests.tiny import MODEL


def test_converted_weights_are_no_place_for_a_run(tmp_path):
    write_folder(tmp_path, {"text/one": np.ones(1, np.float32)}, "dinotxt", MODEL)
    with pytest.raises(UserError, match="holds converted weights; choose another --config.workdir"):
        refuse_other_run(tmp_path, Config())


@pytest.mark.parametrize("left", ["log.jsonl", "checkpoints/3"])
def test_a_run_that_failed_before_its_first_step_may_be_mended(tmp_path, left):
    write_config(tmp_path, Config(seed=1))
    refuse_other_run(tmp_path, Config(seed=2))
    (tmp_path / left).mkdir(parents=True)
    refuse_other_run(tmp_path, Config(seed=1))
    with pytest.raises(UserError, match="holds a run with seed=1, not 2"):
        refuse_other_run(tmp_path, Config(seed=2))


def test_nor_is_an_exported_model(tmp_path):
    (tmp_path / EXPORT_FILE).write_text("{}")
    with pytest.raises(UserError, match="holds an exported model; choose another --config.workdir"):
        refuse_other_run(tmp_path, Config())
    refuse_other_run(tmp_path / "new", Config())


def test_what_computes_a_step_may_change(tmp_path):
    write_config(tmp_path, load_config("configs/coco_stuff.py"))
    (tmp_path / "log.jsonl").touch()
    changes = ["model.early.remat=True", "model.late.kernel=fused", "model.decoder.packed=True"]
    refuse_other_run(tmp_path, load_config("configs/coco_stuff.py", changes))
    with pytest.raises(UserError, match="holds a run with model.late.layers=2, not 3"):
        refuse_other_run(tmp_path, load_config("configs/coco_stuff.py", [*changes, "model.late.layers=3"]))


@pytest.mark.parametrize("option", sorted(RESUMABLE))
def test_every_option_that_may_change_is_one(option):
    attrgetter(option)(Config())
