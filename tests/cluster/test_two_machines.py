"""A cluster of two machines, which are two processes of Ray here: one dies in the middle, or lacks the package."""

import os
import threading
import time

import jax
import pytest

from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.errors import UserError
from tests.cluster.clusters import two_machines
from tests.cluster.test_work import ENDED
from tests.pictures.test_folder_runs import contents, make_pictures
from tests.saved_run import save_run

HIDE = """
import sys

class Hide:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "dinov3seg_jax":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hide)
"""  # what Python runs first on the machines
COUNT = 80


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A command line, but for its end; machines that start from here on find the package of this checkout."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.values["jax_compilation_cache_dir"])
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    folder = make_pictures(tmp_path / "pictures", [(40, 48), (24, 24)] * (COUNT // 2))
    (folder / "007.png").write_bytes(b"no picture")
    run = save_run(tmp_path / "run")
    return ["--image", str(folder), "--classes", "red circle, grass, sky", "--checkpoint", str(run)]


@pytest.mark.slow
def test_a_machine_dies_in_the_middle(words, tmp_path, capsys):
    formats = ["--format", "labels,json,csv"]
    assert main([*words, *formats, "--out", str(tmp_path / "alone")]) == 2
    cluster, second = two_machines()
    out = tmp_path / "out"
    command = [*words, *formats, "--out", str(out), "--cluster", cluster.address]

    def remove():
        while len(list(out.glob("*.json"))) < 10:
            time.sleep(0.05)
        cluster.remove_node(second)
        (out / f"..009.csv.{ENDED}").touch()  # as a worker leaves that dies while it writes

    threading.Thread(target=remove, daemon=True).start()
    try:
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr()
    finally:
        cluster.shutdown()
    assert contents(out) == contents(tmp_path / "alone")
    (tmp_path / "pictures" / "007.png").unlink()
    assert main(command) == 0  # without the cluster, which is gone: nothing is left to do
    again = capsys.readouterr()
    assert sum(".png: " in line for line in said.out.splitlines()) == COUNT - 1
    assert f"error: 1 of {COUNT} pictures could not be segmented" in said.err
    assert "007.png is no picture that can be read" in said.err
    assert f"{COUNT - 1} of {COUNT - 1} pictures are done already" in again.out
    assert ".png: " not in again.out


@pytest.mark.slow
def test_a_machine_without_the_package(words, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cluster, _ = two_machines()
    try:
        with pytest.raises(UserError, match="has no dinov3seg_jax of this version"):
            main([*words, "--out", str(tmp_path / "out"), "--cluster", cluster.address])
    finally:
        cluster.shutdown()
    assert not list((tmp_path / "out").iterdir())
