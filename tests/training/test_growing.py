"""What grows while a run trains is in its folder when it has to be: on a disk at once, in a bucket now and then."""

import pytest

from dinov3seg_jax.folders import files_below
from dinov3seg_jax.places import place
from dinov3seg_jax.training import growing
from dinov3seg_jax.training.growing import Growing


def test_on_a_disk_files_grow_where_they_are(tmp_path):
    grows = Growing(tmp_path)
    assert grows.folder == tmp_path
    grows.now_and_then()
    grows.keep()
    grows.close()
    assert tmp_path.is_dir()


def test_in_a_bucket_what_changed_is_written_when_asked_and_now_and_then(bucket, monkeypatch):
    workdir = place(f"{bucket}/run")
    grows = Growing(workdir)
    assert grows.folder.is_dir()
    log, curve = grows.folder / "log.jsonl", grows.folder / "tensorboard" / "events"
    curve.parent.mkdir()
    log.write_text("one\n")
    curve.write_bytes(b"1")
    grows.now_and_then()
    assert files_below(workdir) == {}
    grows.keep()
    assert sorted(files_below(workdir)) == ["log.jsonl", "tensorboard/events"]
    (workdir / "tensorboard" / "events").unlink()
    log.write_text("one\ntwo\n")
    monkeypatch.setattr(growing, "SECONDS", 0.0)
    grows._due = 0.0
    grows.now_and_then()
    assert sorted(files_below(workdir)) == ["log.jsonl"]  # what did not change was not written again
    assert (workdir / "log.jsonl").read_text() == "one\ntwo\n"
    log.write_text("one\ntwo\nthree\n")
    grows.close()
    assert (workdir / "log.jsonl").read_text() == "one\ntwo\nthree\n"
    assert not grows.folder.exists()


@pytest.mark.slow
def test_a_log_in_a_bucket_goes_on_without_losing_or_doubling_lines(bucket):
    from dinov3seg_jax.training.logs import Logs
    from tests.training.test_logs import config_of

    workdir = place(f"{bucket}/run")
    logs = Logs(config_of(workdir), 0)
    for step in (1, 2, 3):
        logs.scalars(step, {"loss": float(step)})
        if step == 2:
            logs.keep()  # as before a step is saved; the third line is lost with the process
    again = Logs(config_of(workdir), 2)
    again.scalars(3, {"loss": 30.0})
    again.close()
    lines = (workdir / "log.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1, "loss": 1.0}', '{"step": 2, "loss": 2.0}', '{"step": 3, "loss": 30.0}']
