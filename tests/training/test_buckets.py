"""Checkpoints in buckets: saved, restored, cleared, damaged; the same steps as on a disk, by the same reader."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError, is_outage
from dinov3seg_jax.folders import children, files_below, remove
from dinov3seg_jax.places import place
from dinov3seg_jax.store.checksums import CHECKSUMS_FILE
from dinov3seg_jax.store.run import RunFolder, finished_steps, write_config
from dinov3seg_jax.training.checkpoint import Checkpoints
from tests.training.test_damage import OPTIMIZER, PARAMETERS, restore, save

SUCCESS = "commit_success.txt"
FROZEN = {"frozen/kernel": jnp.asarray(np.random.default_rng(1).normal(size=(40, 10)).astype(np.float32))}


@pytest.fixture
def workdir(bucket):
    """A folder, or all of a bucket."""
    workdir = place(f"{bucket}/runs/one 1" if bucket.startswith("gs") else bucket)
    write_config(workdir, Config())
    return workdir


def names(workdir):
    return [path.name for path in children(workdir / "checkpoints")]


def saved(workdir, *steps, keep=2):
    checkpoints = Checkpoints(workdir, keep)
    checkpoints.share(FROZEN)
    for step in steps:
        save(checkpoints, step)
    checkpoints.close()


def restored(workdir):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    described = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), (PARAMETERS, OPTIMIZER, FROZEN)
    )
    checkpoints = Checkpoints(workdir, keep=2)
    try:
        return checkpoints.restore(*described)
    finally:
        checkpoints.close()


def largest(folder):
    return max(files_below(folder).values(), key=lambda path: path.stat().st_size)


@pytest.mark.slow
def test_saved_restored_and_passed_over_where_damaged(workdir, capsys):
    saved(workdir, 1, 6, 10)  # of which 1 goes, and 10 is not taken for a part of it
    assert names(workdir) == ["10", "6"]
    held = restored(workdir)
    assert held.step == 10
    np.testing.assert_array_equal(held.parameters["one/kernel"], PARAMETERS["one/kernel"] + 10)
    np.testing.assert_array_equal(held.frozen["frozen/kernel"], FROZEN["frozen/kernel"])
    assert RunFolder(str(workdir), "6").progress() == {"train_seconds": 6}

    damaged = largest(workdir / "checkpoints" / "10")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert RunFolder(str(workdir)).progress() == {"train_seconds": 6}
    assert names(workdir) == ["10", "6"]
    assert restored(workdir).step == 6
    assert names(workdir) == ["10.damaged", "6"]
    assert "checkpoints/10' is damaged: " in capsys.readouterr().err
    saved(workdir, 10)
    assert names(workdir) == ["10", "10.damaged", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["largest", CHECKSUMS_FILE])
def test_a_lost_object(workdir, lost):
    saved(workdir, 4, 6)
    step = workdir / "checkpoints" / "6"
    (largest(step) if lost == "largest" else step / lost).unlink()
    assert restored(workdir).step == 4
    assert names(workdir) == ["4", "6.damaged"]


@pytest.mark.slow
def test_what_was_not_finished_does_not_count_and_is_cleared_away(workdir):
    """As a kill leaves it: in a save, and in a deletion."""
    saved(workdir, 4, 6)
    folder = workdir / "checkpoints"
    for name, path in files_below(folder / "6").items():
        if name != CHECKSUMS_FILE:
            (folder / "8" / name).write_bytes(path.read_bytes())
    (folder / "8.unfinished").write_bytes(b"")
    (folder / "4.unfinished").write_bytes(b"")
    (folder / "6.unfinished").write_bytes(b"")
    remove(folder / "4" / CHECKSUMS_FILE)
    assert finished_steps(folder) == [6]
    assert restored(workdir).step == 6
    assert names(workdir) == ["6"]


@pytest.mark.slow
def test_a_run_of_today_is_read(tmp_path, bucket):
    """A step whose folder was renamed when it was whole; orbax left no word in it that it had finished."""
    write_config(tmp_path, Config())
    saved(tmp_path, 6)
    copy = place(f"{bucket}/copy")
    for name, path in files_below(tmp_path).items():
        content = path.read_bytes()
        if name.endswith(CHECKSUMS_FILE):
            written = json.loads(content)["files"]
            content = json.dumps({"files": {name: written[name] for name in written if name != SUCCESS}}).encode()
        if path.name != SUCCESS:
            (copy / name).write_bytes(content)
    assert RunFolder(str(copy)).progress() == {"train_seconds": 6}
    assert restored(copy).step == 6


def test_an_outage_is_no_damage(s3, s3_faults, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    workdir = place(f"{s3}/run")
    write_config(workdir, Config())
    checksums = workdir / "checkpoints" / "6" / CHECKSUMS_FILE
    checksums.write_bytes(b'{"files": {"one": {"bytes": 1, "crc32": "83dcefb7"}}}')
    (checksums.parent / "one").write_bytes(b"1")
    assert RunFolder(str(workdir)).whole_step().name == "6"
    for name in (CHECKSUMS_FILE, "one"):
        s3_faults.answer(503, name=name)
        with pytest.raises(OSError, match="Service Unavailable") as caught:
            RunFolder(str(workdir)).whole_step()
        assert is_outage(caught.value)
        s3_faults.clear()


def test_a_bucket_that_refuses_writing_is_found_before_work_starts(workdir, faults):
    from dinov3seg_jax.training.loop import train

    faults.answer(403, writes=True)
    with pytest.raises(UserError, match=r"cannot be written \(.*\); use credentials that may write"):
        train(Config(workdir=str(workdir)))


def test_restore_of_nothing(workdir):
    assert restore(workdir) is None
