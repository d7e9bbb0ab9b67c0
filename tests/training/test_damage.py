"""Damaged checkpoints are noticed, said aloud and passed over; a run never begins again in silence."""

import errno
import resource
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.checksums import CHECKSUMS_FILE, damage
from dinov3seg_jax.store.run import RunFolder, write_config
from dinov3seg_jax.training import checkpoint
from dinov3seg_jax.training.checkpoint import Checkpoints

PARAMETERS = {"one/kernel": jnp.asarray(np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32))}
OPTIMIZER = {"count": jnp.int32(4), "mu": PARAMETERS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with steps 4 and 6."""
    workdir = tmp_path_factory.mktemp("finished")
    write_config(workdir, Config())
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (2, 4, 6):
        save(checkpoints, step)
    checkpoints.close()
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def save(checkpoints, step):
    checkpoints.save(step, {"one/kernel": PARAMETERS["one/kernel"] + step}, OPTIMIZER, {"train_seconds": step})


def restore(workdir):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    described = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), (PARAMETERS, OPTIMIZER)
    )
    checkpoints = Checkpoints(workdir, keep=2)
    try:
        return checkpoints.restore(*described)
    finally:
        checkpoints.close()


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def files(step_folder):
    return sorted(path for path in step_folder.rglob("*") if path.is_file())


def largest(step_folder):
    return max(files(step_folder), key=lambda path: path.stat().st_size)


def flip_a_bit(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGES = {
    "one flipped bit": lambda step: flip_a_bit(largest(step)),
    "one flipped bit in the manifest": lambda step: flip_a_bit(step / CHECKSUMS_FILE),
    "a truncated file": lambda step: truncate(largest(step), largest(step).stat().st_size // 2),
    "a file that lost its last byte": lambda step: truncate(largest(step), largest(step).stat().st_size - 1),
    "an empty file": lambda step: truncate(largest(step), 0),
    "an empty manifest": lambda step: truncate(step / CHECKSUMS_FILE, 0),
    "a manifest that is not one": lambda step: (step / CHECKSUMS_FILE).write_text("[1]"),
    "a missing file": lambda step: largest(step).unlink(),
    "a missing host's shard": lambda step: shutil.rmtree(step / "parameters" / "ocdbt.process_0"),
    "a missing part": lambda step: shutil.rmtree(step / "optimizer"),
    "a missing manifest": lambda step: (step / CHECKSUMS_FILE).unlink(),
    "an empty step folder": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_step_before_takes_the_place_of_a_damaged_one(run, capsys, kind):
    DAMAGES[kind](run / "checkpoints" / "6")
    assert RunFolder(run).progress() == {"train_seconds": 4}  # as eval.py and predict.py read; they leave it as it is
    assert names(run) == ["4", "6"]
    assert restore(run).step == 4
    assert names(run) == ["4", "6.damaged"]
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith(f"WARNING: checkpoint '{run}/checkpoints/6' is damaged: ")
        assert line.endswith("; step 4 is used instead")


def test_the_step_before_is_loaded_bit_for_bit(run):
    flip_a_bit(largest(run / "checkpoints" / "6"))
    restored = restore(run)
    np.testing.assert_array_equal(restored.parameters["one/kernel"], PARAMETERS["one/kernel"] + 4)


def test_a_flipped_bit_in_any_file_is_noticed(run):
    step = run / "checkpoints" / "6"
    rng = np.random.default_rng(0)
    assert damage(step) is None
    content = [path for path in files(step) if path.name != CHECKSUMS_FILE]
    assert len(content) > 5
    for path in filter(lambda path: path.stat().st_size, content):
        bit = int(rng.integers(8 * path.stat().st_size))
        flip_a_bit(path, bit)
        assert damage(step).startswith(f"{path.relative_to(step)} is not what was written")
        flip_a_bit(path, bit)
    assert damage(step) is None


def test_a_step_that_was_passed_over_can_be_saved_again(run):
    flip_a_bit(largest(run / "checkpoints" / "6"))
    assert restore(run).step == 4
    checkpoints = Checkpoints(run, keep=2)
    save(checkpoints, 6)
    checkpoints.close()
    assert restore(run).step == 6
    assert names(run) == ["4", "6", "6.damaged"]


def test_where_no_step_is_whole_the_run_does_not_begin_again(run):
    for step in ("4", "6"):
        flip_a_bit(largest(run / "checkpoints" / step))
    for function in (restore, lambda folder: RunFolder(folder).progress()):
        with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(step 6: .*, step 4: .*\); put one back"):
            function(run)
    assert names(run) == ["4", "6"]


def test_what_was_not_finished_does_not_count_and_is_cleared_away(run):
    for name in ("8.unfinished", "8.unfinished.orbax-checkpoint-tmp", "2.unfinished"):
        shutil.copytree(run / "checkpoints" / "6", run / "checkpoints" / name)
    assert RunFolder(run).progress() == {"train_seconds": 6}
    assert restore(run).step == 6
    assert names(run) == ["4", "6"]


@pytest.fixture
def only_4(run):
    """The run with one step left and no more to be kept."""
    shutil.rmtree(run / "checkpoints" / "6")
    return Checkpoints(run, keep=1)


def test_the_last_good_step_goes_only_when_the_next_is_whole(run, only_4, monkeypatch, capsys):
    def fail(folder, confirm):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checksums", fail)
        save(only_4, 6)
        with pytest.raises(UserError, match=r"6' could not be written \(.*No space left.*\); .* goes on from step 4."):
            only_4.close()
    assert names(run) == ["4"]
    assert "saved" not in capsys.readouterr().out
    again = Checkpoints(run, keep=1)
    save(again, 6)
    again.close()
    assert names(run) == ["6"]
    assert "checkpoints/6" in capsys.readouterr().out


def train_on(checkpoints):
    save(checkpoints, 6)
    for _ in range(200):
        time.sleep(0.05)
        checkpoints.check()


def test_a_disk_that_takes_no_more_stops_the_run_at_the_next_step(run, only_4):
    """Files may not grow beyond 50 kB for a while, which stops the library that writes them as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"6' could not be written \(.*\); .* the run goes on from step 4."):
            train_on(only_4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        only_4.close()
    assert names(run) == ["4"]
    assert restore(run).step == 4


ON_A_FULL_DISK = """
import pathlib, sys
from tests.training.test_damage import *
workdir = pathlib.Path(sys.argv[1])
checkpoints = Checkpoints(workdir, keep=2)
try:
    for step in range(1, 100):
        save(checkpoints, step)
except UserError as error:
    print(error)
checkpoints.close()
print(names(workdir), restore(workdir).step)
"""


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    """A real one, of 600 kB, where the machine lets a user mount it."""
    inside = f'mount -t tmpfs -o size=600k tmpfs {tmp_path} && "$@"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", inside, "-", "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    command = ["unshare", "-rm", "sh", "-c", inside, "-", sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *saved, error, left = done.stdout.splitlines()
    last = len(saved)
    assert last >= 1
    assert "No space left on device" in error
    assert error.endswith(f"the run goes on from step {last}.")
    assert left == f"{sorted(str(step) for step in range(max(last - 1, 1), last + 1))} {last}"
