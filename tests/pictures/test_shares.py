"""One folder, several processes: who does what, who ends last, and what is left when one dies."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax import processes
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.pictures.batches import BATCHES_LOOKED_AT, neighbours, several_neighbours
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.pictures.shares import ENDED, begin_for_all, fingerprint, is_last, own_share
from dinov3seg_jax.text.class_lists import ClassList
from tests.pictures.test_folder_runs import contents, make_pictures
from tests.saved_run import save_run
from tests.training.lives import STARTED, _free_port, end_all, kill, wait_until

CLASSES = "red circle, grass, sky"
EVERY = [Picture(Path(f"{number}.png"), Path("out", f"{number}")) for number in range(50)]


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (1, 3), (2, 2), (4, 5)])
def test_each_picture_is_in_one_share_and_batches_are_what_they_were(batch_size, processes):
    wanted = {picture for number, picture in enumerate(EVERY) if number % 7}
    owned = [own_share(EVERY, wanted, batch_size, process, processes) for process in range(processes)]
    assert sorted(picture for own in owned for picture in own) == sorted(wanted)
    for near in neighbours(EVERY, batch_size):
        assert len(near) <= BATCHES_LOOKED_AT * batch_size
        assert sum(bool(set(near) & set(own)) for own in owned) == 1


def test_what_is_left_is_shared_equally():
    """A run after one that lost every second share: each process has some of it."""
    left = own_share(EVERY, EVERY, 1, 1, 2)
    assert [len(own_share(EVERY, left, 1, process, 3)) for process in range(3)] == [8, 8, 8]


def test_longer_parts_are_made_of_whole_ones():
    parts = list(several_neighbours(EVERY, 1, 12))
    assert [len(part) for part in parts] == [16, 16, 16, 2]
    assert [picture for part in parts for picture in part] == EVERY


@pytest.mark.parametrize(
    "changed", [{"question": {"b": 2}}, {"pictures": EVERY[1:]}, {"wanted": EVERY[1:]}], ids=["option", "file", "done"]
)
def test_what_processes_have_to_agree_on(changed):
    said = {"question": {"a": 1}, "pictures": EVERY, "wanted": EVERY}
    assert fingerprint(**said) == fingerprint(**said)
    assert fingerprint(**said | changed) != fingerprint(**said)


def test_a_process_that_sees_something_else_stops_all(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(processes, "tell_all", lambda said: "what the first said")
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", lambda own: np.array([False, own]))
    processes.agree("what the first said")
    with pytest.raises(UserError, match="process 1 of this run does not see what process 0 sees"):
        processes.agree("something else")


def test_the_last_to_end_is_told_so_and_leaves_no_marks(tmp_path):
    assert is_last(tmp_path, 0, 1)
    assert not list(tmp_path.iterdir())
    assert [is_last(tmp_path, process, 3) for process in (2, 0, 1)] == [False, False, True]
    assert not list(tmp_path.iterdir())


def test_of_two_that_end_at_once_one_is_the_last(tmp_path, monkeypatch):
    (tmp_path / f"{ENDED}.1").touch()
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError))
    assert not is_last(tmp_path, 0, 2)


def test_marks_of_a_run_whose_process_died_count_no_more(tmp_path):
    asked = ClassList.of(CLASSES)
    (tmp_path / f"{ENDED}.0").touch()
    begin_for_all(tmp_path, {}, [], Outputs(("coco",), folder=tmp_path), asked)
    assert not is_last(tmp_path, 1, 2)
    assert (tmp_path / ".classes.json").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / f"{ENDED}.0").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        begin_for_all(tmp_path, {}, [], Outputs(), ClassList.of(CLASSES))
    with pytest.raises(UserError, match="cannot be written"):
        is_last(tmp_path, 0, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "-", "--coordinator=a:1", "--processes=2", "--process=0"], "is one process's own"),
        (["--image", "a.png", "--processes=2"], "go together"),
    ],
)
def test_what_several_processes_cannot_be_given(words, message):
    with pytest.raises(UserError, match=message):
        main([*words, "--classes", CLASSES, "--checkpoint", "run"])


def test_flags_say_whether_there_are_several():
    alone = argparse.Namespace(distributed=False, coordinator=None, processes=None, process=None)
    assert not processes.are_named(alone)
    assert processes.are_named(argparse.Namespace(**vars(alone) | {"distributed": True}))


@pytest.mark.slow
def test_one_of_two_is_killed_and_three_do_the_rest(tmp_path):
    """Every picture is done once, with the bytes of one process; whoever is left by the other's end goes on to its."""
    folder = make_pictures(tmp_path / "pictures", [(40, 48), (24, 24)] * 32)
    words = ["--image", str(folder), "--classes", CLASSES, "--checkpoint", str(save_run(tmp_path / "run"))]
    words += ["--format", "labels,json,coco,csv"]
    environment = os.environ | {
        "PYTHONPATH": os.getcwd(),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "DINOV3SEG_CACHE": str(tmp_path / "cache"),
    }
    said = []

    def start(out, count):
        port, begun = _free_port(), []
        for process in range(count):
            flags = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={process}"]
            command = [sys.executable, "-m", "dinov3seg_jax", "predict", *words, "--out", str(tmp_path / out)]
            said.append(tmp_path / f"{len(said)}.txt")
            with said[-1].open("w") as output:
                flags = flags if count > 1 else []
                begun.append(subprocess.Popen([*command, *flags], env=environment, stdout=output, stderr=output))
        STARTED.extend(begun)
        return begun

    def done():
        return set((tmp_path / "out").glob("[0-9]*.json"))

    seconds = {tmp_path / "out" / f"{number:03}.json" for number in range(8, 16)}  # some of the second process's own
    try:
        (alone,) = start("alone", 1)
        assert alone.wait() == 0
        first, second = start("out", 2)
        assert wait_until(lambda: done() & seconds, second)
        kill(second)
        assert first.wait() == 0, said[1].read_text()
        before = {path: path.stat().st_mtime_ns for path in done()}
        assert 32 < len(before) < 64  # its own half, whole, and what the other had done
        assert not (tmp_path / "out" / "coco.json").exists()
        assert [process.wait() for process in start("out", 3)] == [0, 0, 0]
    finally:
        end_all()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sum(path.read_text().count(".png: ") for path in said[3:]) == 64 - len(before)
    assert sum("all pictures -> " in path.read_text() for path in said[3:]) == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
