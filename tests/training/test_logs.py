"""What a record says, and who writes it."""

import json

import jax
import pytest

from dinov3seg_jax.config import Config, TrainConfig
from dinov3seg_jax.training.logs import Logs
from dinov3seg_jax.training.profiling import PROFILE_FOLDER, Profiler


class Device:
    """One that keeps count of its memory."""

    def memory_stats(self):
        return {"peak_bytes_in_use": 3_000_000_000}


def config_of(workdir):
    return Config(workdir=str(workdir), train=TrainConfig(steps=10, batch_size=8))


def written(workdir, **cost):
    logs = Logs(config_of(workdir), 0)
    if cost:
        logs.know_cost(**cost)
    logs.advance()
    logs.write(2, {"loss": 1.5}, seconds_per_step=0.5, data_wait=0.25)
    logs.close()
    return json.loads((workdir / "log.jsonl").read_text())


def test_a_record_says_how_fast_and_what_waits(tmp_path):
    record = written(tmp_path)
    assert record == {
        "step": 2,
        "loss": 1.5,
        "seconds_per_step": 0.5,
        "images_per_second": 16.0,
        "data_wait": 0.25,
    }


def test_where_the_cost_is_known_it_says_how_busy_devices_are(tmp_path):
    record = written(tmp_path, flops=100e12, peak=800e12)
    assert record["tflops_per_device"] == pytest.approx(200)
    assert record["utilisation"] == pytest.approx(0.25)


def test_a_device_of_unknown_peak_has_no_utilisation(tmp_path):
    record = written(tmp_path, flops=100e12, peak=None)
    assert record["tflops_per_device"] == pytest.approx(200)
    assert "utilisation" not in record


def test_it_says_how_much_memory_was_held_where_a_device_keeps_count(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert written(tmp_path)["peak_memory_gb"] == 3


def test_of_several_processes_only_the_first_tells(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    logs = Logs(config_of(tmp_path), 0)
    logs.advance()
    logs.write(1, {"loss": 1.5}, seconds_per_step=0.5, data_wait=0.25)
    logs.close()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def recordings(monkeypatch):
    """What was asked of JAX's profiler."""
    asked = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: asked.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: asked.append(("stop",)))
    return asked


@pytest.mark.parametrize(
    ("first", "count", "steps", "expected"),
    [
        (3, 2, range(1, 8), {"start": 3, "stop": 4}),
        (3, 1, range(1, 8), {"start": 3, "stop": 3}),
        (3, 9, range(5, 8), {"start": 5, "stop": "close"}),
        (3, 2, range(5, 8), {}),
        (0, 0, range(1, 8), {}),
    ],
)
def test_the_steps_that_were_asked_for_are_recorded(tmp_path, recordings, first, count, steps, expected):
    profiler, when = Profiler(tmp_path, first, count), {}
    for step in steps:
        for moment in (profiler.before, lambda step: profiler.after(step, ())):
            known = len(recordings)
            moment(step)
            when |= {entry[0]: step for entry in recordings[known:]}
    known = len(recordings)
    profiler.close()
    when |= {entry[0]: "close" for entry in recordings[known:]}
    assert when == expected
    assert all(entry[1] == str(tmp_path / PROFILE_FOLDER) for entry in recordings if entry[0] == "start")


@pytest.mark.slow
def test_a_recording_is_a_file_that_xprof_reads(tmp_path):
    profiler = Profiler(tmp_path, 1, 1)
    profiler.before(1)
    profiler.after(1, jax.jit(lambda x: x + 1)(1.0))
    assert list((tmp_path / PROFILE_FOLDER).rglob("*.xplane.pb"))
