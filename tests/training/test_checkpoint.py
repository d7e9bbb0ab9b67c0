"""What is saved comes back bit for bit; what cannot be read is one sentence."""

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config, TextConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.places import place
from dinov3seg_jax.store.folder import load_parameters
from dinov3seg_jax.store.run import RunFolder, read_config, write_config
from dinov3seg_jax.training import checkpoint
from dinov3seg_jax.training.checkpoint import Checkpoints
from tests.tiny import MODEL

SMALL = dataclasses.replace(MODEL, text=TextConfig(dim=16, depth=1, heads=2, vocab_size=64, context_length=8))
CONFIG = Config(model=SMALL, seed=7)
PROGRESS = {"data": {"next_index": 12, "buffers": [1, 2]}, "train_seconds": 3.25}


@pytest.fixture(scope="module")
def parameters():
    return {name: jnp.asarray(value) for name, value in initialize(SMALL, jax.random.key(1)).items()}


@pytest.fixture(scope="module")
def optimizer(parameters):
    """A tree such as optax's, its values far from round."""
    moments = {name: jnp.sin(value) for name, value in parameters.items()}
    return (jnp.int32(4), {"mu": moments, "nothing": (), "nu": jax.tree.map(jnp.square, moments)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, parameters, optimizer):
    """The folder of a run that was saved at steps 2, 4 and 6 in quick succession, of which two were to stay."""
    workdir = tmp_path_factory.mktemp("finished")
    write_config(workdir, CONFIG)
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (2, 4, 6):
        checkpoints.save(step, at_step(parameters, step), optimizer, PROGRESS | {"train_seconds": step + 0.25})
    checkpoints.close()
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def at_step(parameters, step):
    return parameters | {"text/logit_scale": jnp.array([float(step)])}


def described(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)


def restore(workdir, parameters, optimizer):
    checkpoints = Checkpoints(workdir, keep=2)
    try:
        return checkpoints.restore(described(parameters), described(optimizer))
    finally:
        checkpoints.close()


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def step_folders(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def read_progress(workdir):
    return RunFolder(workdir).progress()


def sentence(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_no_step_is_skipped_and_the_newest_stay(finished):
    assert step_folders(finished) == ["4", "6"]


def test_everything_comes_back_bit_for_bit(finished, parameters, optimizer):
    restored = restore(finished, parameters, optimizer)
    assert restored.step == 6
    assert_same(restored.parameters, at_step(parameters, 6))
    assert_same(restored.optimizer, optimizer)
    assert restored.progress == PROGRESS | {"train_seconds": 6.25}


def test_weights_alone(finished, parameters):
    config, loaded = load_parameters(finished)
    assert config == CONFIG
    assert_same(loaded, at_step(parameters, 6))


def test_a_run_is_found_from_a_folder_beside_it(finished, parameters, optimizer, tmp_path, monkeypatch):
    beside = tmp_path / "beside"
    beside.mkdir()
    monkeypatch.chdir(beside)
    named = Path(os.path.relpath(finished))  # as in ../runs/quickstart, which TensorStore refuses
    assert named.parts[0] == ".."
    assert_same(load_parameters(named)[1], at_step(parameters, 6))
    write_config(Path("../new"), CONFIG)
    checkpoints = Checkpoints(Path("../new"), keep=2)
    checkpoints.save(1, parameters, optimizer, PROGRESS)
    checkpoints.close()
    assert RunFolder(tmp_path / "new").progress() == PROGRESS


@pytest.mark.slow
def test_weights_that_were_kept_in_half_the_memory(tmp_path, parameters, optimizer):
    """Of `train.frozen_dtype`; in a folder whose name means something in a URL."""
    workdir = tmp_path / "50%20#1?"
    write_config(workdir, CONFIG)
    halved = {
        name: value.astype(jnp.bfloat16) if name.endswith("/kernel") else value for name, value in parameters.items()
    }
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(1, halved, optimizer, PROGRESS)
    checkpoints.close()
    _, loaded = load_parameters(workdir)
    assert_same(loaded, {name: value.astype(jnp.float32) for name, value in halved.items()})


def test_progress_alone(finished):
    assert read_progress(finished) == PROGRESS | {"train_seconds": 6.25}


def test_a_new_run_has_nothing_to_restore(tmp_path, parameters, optimizer):
    assert restore(tmp_path, parameters, optimizer) is None


@pytest.mark.parametrize("shared", [True, False])
def test_processes_that_do_not_see_one_folder_are_refused(tmp_path, monkeypatch, shared):
    """What the other process answers is made up; tests/training/test_processes.py has real ones."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoint, "broadcast_one_to_all", lambda number: number)
    monkeypatch.setattr(checkpoint, "process_allgather", lambda own: np.array([own, shared]))
    if shared:
        Checkpoints(tmp_path, keep=1).close()
    else:
        with pytest.raises(UserError, match="is not the same folder for all processes; set --config.workdir to a shar"):
            Checkpoints(tmp_path, keep=1)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_several_processes_are_refused_where_only_one_can_write(s3, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"'s3://.*/run' takes steps from one process alone, and this run has 2; set"):
        Checkpoints(place(f"{s3}/run"), keep=1)


def test_the_config_comes_back(tmp_path):
    write_config(tmp_path / "new" / "folder", CONFIG)
    assert read_config(tmp_path / "new" / "folder") == CONFIG
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["config.json"]


def test_a_folder_that_is_no_runs(tmp_path):
    assert "does not exist" in sentence(load_parameters, tmp_path / "absent")
    assert "is not a run's folder (it has no config.json)" in sentence(load_parameters, tmp_path)


@pytest.mark.parametrize("content", [b'{"model": {', b"", b"\xff\xfe\x00", b"[]", b"null"])
def test_a_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in sentence(load_parameters, tmp_path)


def test_a_config_of_another_version(run):
    path = run / "config.json"
    path.write_text(path.read_text().replace('"seed": 7', '"sead": 7'))
    assert "unknown option 'sead' (did you mean 'seed'?)" in sentence(load_parameters, run)


@pytest.mark.parametrize("load", [load_parameters, read_progress])
def test_no_checkpoint_yet(tmp_path, load):
    write_config(tmp_path, CONFIG)
    assert "holds no complete checkpoint" in sentence(load, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "holds no complete checkpoint" in sentence(load, tmp_path)


def test_a_damaged_step_is_passed_over(run, parameters, capsys):
    """The same for all who read: `test_damage.py` has every kind of damage."""
    shutil.rmtree(run / "checkpoints" / "6" / "parameters")
    assert_same(load_parameters(run)[1], at_step(parameters, 4))
    assert "6' is damaged" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_its_config_is_reported(run):
    write_config(run, dataclasses.replace(CONFIG, model=MODEL))
    assert "cannot be loaded" in sentence(load_parameters, run)


def test_a_step_comes_back_on_more_or_fewer_devices_bit_for_bit(tmp_path):
    script = textwrap.dedent("""
        import sys
        import jax
        import numpy as np
        from pathlib import Path
        from jax.sharding import NamedSharding, PartitionSpec
        from dinov3seg_jax.training.checkpoint import Checkpoints
        from dinov3seg_jax.training.digests import digests

        def sharding(devices):
            return NamedSharding(jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices]),
                                 PartitionSpec(None, "data"))

        values = np.random.default_rng(0).normal(size=(24, 64)).astype(np.float32)
        for before, after in ((1, 8), (8, 1)):
            parameters = {"a/kernel": jax.device_put(values, sharding(before))}
            checkpoints = Checkpoints(Path(sys.argv[1], str(before)), keep=1)
            checkpoints.share({"frozen/kernel": parameters["a/kernel"]})
            checkpoints.save(1, parameters, {"mu": parameters}, {"train_seconds": 1})
            checkpoints.close()
            leaf = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding(after))
            checkpoints = Checkpoints(Path(sys.argv[1], str(before)), keep=1)
            restored = checkpoints.restore({"a/kernel": leaf}, {"mu": {"a/kernel": leaf}}, {"frozen/kernel": leaf})
            assert digests(parameters) == digests(restored.parameters)
            held = restored.parameters | restored.frozen, restored.optimizer["mu"]
            for array in jax.tree.leaves(held):
                assert len(array.addressable_shards) == after
                assert array.addressable_shards[0].data.shape == (24, 64 // after)
                np.testing.assert_array_equal(array, values)
    """)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True, timeout=120)
