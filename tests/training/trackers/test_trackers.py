"""Records, read back by each tracker's own library."""

import json
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest

from dinov3seg_jax.config import Config, TrainConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.places import place
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.training.logs import RECORD_FILE, Logs
from dinov3seg_jax.training.resume import refuse_other_run
from dinov3seg_jax.training.trackers import table

PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def config_of(workdir, *trackers):
    return Config(workdir=str(workdir), train=TrainConfig(steps=10, trackers=trackers))


def record(workdir, tracker, lives=((0, {1: 2.5, 2: 1.5}), (1, {2: 1.25}))):
    """Two processes of one run: the second goes on from step 1."""
    for start, losses in lives:
        logs = Logs(config_of(workdir, tracker), start)
        for step, loss in losses.items():
            logs.scalars(step, {"loss": loss, "gradient_norm/vision": 0.5})
            logs.pictures(step, {"seen/0": PICTURE})
        logs.close()


def test_tensorboard(tmp_path):
    record(tmp_path, "tensorboard", [(0, {1: 2.5, 2: 1.5})])
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert content.count(b"gradient_norm/vision") == 2
    assert content.count(b"\x89PNG") == 2
    assert not list(tmp_path.rglob("*wandb*"))


@pytest.mark.slow
def test_mlflow_with_a_local_folder(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record(tmp_path, "mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("dinov3seg").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((tmp_path / RECORD_FILE).read_text())["trackers"]["mlflow"]
    assert run.data.params["train.learning_rate"] == "0.0002"
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 2.5),
        (2, 1.5),
        (2, 1.25),
    ]
    assert client.get_metric_history(run.info.run_id, "gradient_norm/vision")[0].value == 0.5
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    assert len(pictures) == 3


def offline_records(path):
    """Of a file that wandb writes offline: chunks in blocks of 32 KiB, as LevelDB's logs have them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    record(tmp_path, "wandb")
    # Until it ends, the last records are in its memory, and a file copied to a bucket would lack them.
    assert not [child for child in psutil.Process().children() if "wandb" in child.name()]
    identity = json.loads((tmp_path / RECORD_FILE).read_text())["trackers"]["wandb"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    points, options = [], {}
    for entry in (entry for file in files for entry in offline_records(file)):
        items = {item.key or "/".join(item.nested_key): item.value_json for item in entry.history.item}
        if "loss" in items:
            assert json.loads(items["gradient_norm/vision"]) == 0.5
            points.append((json.loads(items["step"]), json.loads(items["loss"])))
        options |= {update.key: json.loads(update.value_json) for update in entry.run.config.update}
    assert points == [(1, 2.5), (2, 1.5), (2, 1.25)]
    assert options["train"]["learning_rate"] == 2e-4
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/seen/*.png"))) == 3


class Broken:
    """A tracker that fails at every record."""

    identity = "one"

    def __init__(self, opening):
        self.opening = opening

    def scalars(self, step, values):
        raise ConnectionError("the server is away")

    pictures = scalars

    def close(self):
        raise ConnectionError("the server is away")


@pytest.fixture
def broken(monkeypatch):
    """`train.trackers=wandb` is Broken."""
    opened = []

    class Module:
        @staticmethod
        def open_tracker(opening):
            opened.append(opening)
            return Broken(opening)

    monkeypatch.setattr(table.importlib, "import_module", lambda name: Module)
    return opened


def test_a_tracker_that_fails_does_not_end_a_run(tmp_path, broken, capsys):
    record(tmp_path, "wandb")
    assert (
        "note: wandb did not take a record (the server is away); log.jsonl has all of them" in capsys.readouterr().err
    )
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in kept] == [(1, 2.5), (2, 1.25)]
    assert [opening.identity for opening in broken] == ["", "one"]
    assert [opening.start for opening in broken] == [0, 1]
    assert broken[0].options["train"]["trackers"] == ("wandb",)


def test_one_that_cannot_be_reached_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    def refuse(name):
        raise RuntimeError("No API key\nconfigured")

    monkeypatch.setattr(table.importlib, "import_module", refuse)
    with pytest.raises(UserError, match=r"^train.trackers: mlflow cannot be used \(No API key configured\); mend that"):
        Logs(config_of(tmp_path, "mlflow"), 0)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^train.trackers names mlflow, .*pip install 'dinov3seg_jax\[mlflow\]'"):
        table.refuse_missing_libraries(("mlflow",), Path("run"))


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / RECORD_FILE).write_text("{")
    with pytest.raises(UserError, match=r"record.json' is damaged \(.*\); delete it"):
        Logs(config_of(tmp_path), 0)


def test_a_run_began_when_its_first_process_did(tmp_path):
    began = []
    for _ in range(2):
        logs = Logs(config_of(tmp_path), 0)
        logs.close()
        began.append(logs.began)
    assert began[0] == began[1]


def test_trackers_may_change_when_a_run_goes_on(tmp_path):
    write_config(tmp_path, config_of("x", "wandb"))
    (tmp_path / "log.jsonl").touch()
    refuse_other_run(tmp_path, config_of("x"))


def test_a_data_base_in_a_bucket_is_refused_before_work_starts(monkeypatch, gcs):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"mlflow, whose data base would be in 'gs://.*/run', and a bucket holds none"):
        table.refuse_missing_libraries(("mlflow",), place(f"{gcs}/run"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    table.refuse_missing_libraries(("mlflow",), place(f"{gcs}/run"))
