"""Official archives become class indices: the same from archives and folders, after any stop, by any workers."""

import dataclasses
import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.prepare import example as convert
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.errors import UserError
from tests.data.archives import IGNORED, MAKERS, SHRUNK, Miniature, make_ade20k_150, make_voc_20

COMMAND = [sys.executable, "-m", "dinov3seg_jax.data.prepare"]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """Makes each data set's miniature once."""
    made: dict[str, Miniature] = {}

    def get(name: str) -> Miniature:
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _read_labels(out: Path, split: str, ignore: int) -> dict[str, np.ndarray]:
    stored = {path.stem: np.asarray(Image.open(path)).astype(int) for path in (out / "labels" / split).iterdir()}
    return {name: np.where(label == ignore, IGNORED, label) for name, label in stored.items()}


@pytest.mark.parametrize("kind", ["archives", "folder"])
@pytest.mark.parametrize("name", MAKERS)
def test_official_files_become_class_indices(miniature, tmp_path, name, kind):
    official = miniature(name)
    sources = official.archives if kind == "archives" else [official.tree]
    manifest = prepare(name, sources, tmp_path / "out", allow_partial=True)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    classes = len(manifest["classes"])
    assert classes == BENCHMARKS[name].class_count
    bits = 8 if classes <= 255 else 16
    assert manifest["ignore"] == 2**bits - 1
    assert manifest["splits"].keys() == official.labels.keys() == BENCHMARKS[name].splits.keys()
    for split, expected in official.labels.items():
        labels = _read_labels(tmp_path / "out", split, manifest["ignore"])
        assert labels.keys() == expected.keys()
        for stem, label in labels.items():
            np.testing.assert_array_equal(label, expected[stem], err_msg=stem)
        together = np.concatenate([label.ravel() for label in expected.values()])
        assert manifest["splits"][split]["files"] == len(expected)
        assert manifest["splits"][split]["pixels"] == [*np.bincount(together[together != IGNORED], minlength=classes)]
        assert manifest["splits"][split]["ignored_pixels"] == int((together == IGNORED).sum())
        assert not manifest["splits"][split]["complete"]
        depth = {np.asarray(Image.open(path)).dtype for path in (tmp_path / "out" / "labels" / split).iterdir()}
        assert depth == {np.dtype(f"uint{bits}")}


@pytest.mark.parametrize("kind", ["archives", "folder"])
@pytest.mark.parametrize("name", MAKERS)
def test_images_are_the_official_files(miniature, tmp_path, name, kind):
    official = miniature(name)
    sources = official.archives if kind == "archives" else [official.tree]
    prepare(name, sources, tmp_path / "out", allow_partial=True)
    for split, images in official.images.items():
        written = {path.stem: path for path in (tmp_path / "out" / "images" / split).iterdir()}
        assert written.keys() == images.keys()
        for stem, path in images.items():
            with Image.open(path) as picture:
                whole = min(picture.size) <= SHRUNK or name != "ade20k_847"
            assert (written[stem].read_bytes() == path.read_bytes()) == whole
            assert written[stem].samefile(path) == (whole and kind == "folder"), "a folder's files are linked"


def test_large_pictures_are_shrunk_with_their_labels(miniature, tmp_path):
    official = miniature("ade20k_847")
    prepare("ade20k_847", official.archives, tmp_path, splits=["eval"], allow_partial=True)
    name = max(official.images["eval"])
    with Image.open(official.images["eval"][name]) as before, Image.open(tmp_path / f"images/eval/{name}.jpg") as after:
        assert before.size == (530, 600)
        assert after.size == (512, 580)
        reference = np.asarray(before.resize(after.size, Image.Resampling.BILINEAR)).astype(int)
        assert abs(np.asarray(after).astype(int) - reference).max() < 12  # stored as JPEG
    assert Image.open(tmp_path / f"labels/eval/{name}.png").size == (512, 580)


def test_voc_leaves_out_images_without_labels(miniature, tmp_path):
    manifest = prepare("voc_20", miniature("voc_20").archives, tmp_path / "out", allow_partial=True)
    (skipped,) = manifest["splits"]["eval"]["skipped"]
    assert skipped == "2007_000035 has no labelled pixel"
    assert not list((tmp_path / "out").rglob("*2007_000035*"))


def test_the_official_number_of_files_is_asked_for(miniature, tmp_path, monkeypatch):
    sources = miniature("ade20k_150").archives
    with pytest.raises(UserError, match=r"holds 3 images of ade20k_150's split 'train', but there should be 20,210"):
        prepare("ade20k_150", sources, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    _expect(monkeypatch, "ade20k_150", 3)
    manifest = prepare("ade20k_150", sources, tmp_path / "out")
    assert [split["complete"] for split in manifest["splits"].values()] == [True, True]


def _expect(monkeypatch, name: str, files: int) -> None:
    row = BENCHMARKS[name]
    splits = {key: dataclasses.replace(split, files=(files,)) for key, split in row.splits.items()}
    monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(row, splits=splits))


def test_splits_can_be_added_and_are_made_once(miniature, tmp_path):
    official = miniature("ade20k_150")
    prepare("ade20k_150", official.archives, tmp_path / "both", allow_partial=True)
    prepare("ade20k_150", official.archives, tmp_path / "out", splits=["validation"], allow_partial=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*g")}
    assert len(before) == 6
    prepare("ade20k_150", official.archives, tmp_path / "out", splits=["train"], allow_partial=True)
    prepare("ade20k_150", official.archives, tmp_path / "out", allow_partial=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    written, both = (_files(tmp_path / folder) for folder in ("out", "both"))
    manifests = [json.loads(files.pop("manifest.json")) for files in (written, both)]
    assert manifests[0] == manifests[1]
    assert written == both


def test_a_stopped_run_goes_on(miniature, tmp_path, monkeypatch):
    official = miniature("voc_20b")
    prepare("voc_20b", official.archives, tmp_path / "whole", allow_partial=True)
    with monkeypatch.context() as stop:
        stop.setattr(convert, "_place", _stop_at(3, convert._place))
        with pytest.raises(KeyboardInterrupt):
            prepare("voc_20b", official.archives, tmp_path / "out", allow_partial=True)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").rglob("*.png")}
    assert len(done) == 2
    (tmp_path / "out" / "labels" / "eval" / ".2007_000035.png.123").write_bytes(b"half")
    (tmp_path / "out" / ".unpacked-killed").mkdir()
    prepare("voc_20b", official.archives, tmp_path / "out", allow_partial=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def _stop_at(call: int, function):
    calls = []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return stopping


@pytest.mark.parametrize("written", range(8))
def test_a_full_disk_leaves_nothing_half_written(miniature, tmp_path, monkeypatch, written):
    """Of each file in turn, half is written when the disk is full: first .unfinished.json, then images and labels."""
    sources = miniature("voc_20b").archives
    whole = _whole(sources, tmp_path)
    calls = []

    def fill(path: Path, content: bytes) -> None:
        calls.append(path)
        room = len(calls) <= written
        with path.open("wb") as file:
            file.write(content if room else content[: len(content) // 2])
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", fill)
        with pytest.raises(UserError, match=r"out' cannot be written \(No space left on device\); make room") as error:
            prepare("voc_20b", sources, tmp_path / "out", allow_partial=True)
    assert "\n" not in str(error.value)
    left = _files(tmp_path / "out")
    assert "manifest.json" not in left
    left.pop(".unfinished.json", None)
    assert left.items() <= whole.items(), "what is there is whole"
    prepare("voc_20b", sources, tmp_path / "out", allow_partial=True)
    assert _files(tmp_path / "out") == whole


def _whole(sources, tmp_path: Path) -> dict[str, bytes]:
    prepare("voc_20b", sources, tmp_path / "whole", allow_partial=True)
    return _files(tmp_path / "whole")


def test_the_command_reports_what_it_did_and_fails_in_one_line(miniature, tmp_path):
    official = miniature("voc_20")
    sources = [str(path) for path in official.archives]
    command = [*COMMAND, "voc_20", "--out", str(tmp_path / "out"), "--workers", "2", "--source", *sources]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    made = subprocess.run([*command, "--allow_partial"], capture_output=True, text=True, check=True)
    assert made.stdout.startswith("voc_20: 2 of eval, in ")
    assert "3/3" in made.stderr, "a progress bar"


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_the_number_of_workers_changes_nothing(miniature, tmp_path, name):
    sources = miniature(name).archives
    for workers in (1, 2, 3):
        prepare(name, sources, tmp_path / str(workers), workers=workers, allow_partial=True)
    assert _files(tmp_path / "1") == _files(tmp_path / "2") == _files(tmp_path / "3")


@pytest.mark.slow
def test_twelve_kills_change_nothing(tmp_path):
    official = make_ade20k_150(tmp_path / "official", pictures=1500)
    prepare("ade20k_150", official.archives, tmp_path / "whole", allow_partial=True)
    command = [*COMMAND, "ade20k_150", "--out", str(tmp_path / "out"), "--workers", "2", "--allow_partial"]
    command += ["--source", *map(str, official.archives)]
    rng, done = random.Random(0), 0
    for kill in range(12):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while kill % 4 and _finished(tmp_path / "out") < done + rng.randrange(1, 50):  # every fourth dies at once
            assert process.poll() is None, "finished before it could be killed twelve times: give it more pictures"
            time.sleep(0.001)
        time.sleep(rng.random() / (20 if kill % 4 else 2))  # a fast machine does hundreds of pictures in a second
        process.kill()
        process.wait()
        done = _finished(tmp_path / "out")
    assert done > 100, "the kills met runs at work"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def _finished(out: Path) -> int:
    return sum(len(os.listdir(folder)) for folder in out.glob("labels/*"))


@pytest.mark.slow
def test_workers_end_with_the_run_that_started_them(tmp_path):
    official = make_voc_20(tmp_path / "official", pictures=3000)
    command = [*COMMAND, "voc_20", "--out", str(tmp_path / "out"), "--workers", "2", "--allow_partial"]
    process = subprocess.Popen([*command, "--source", *map(str, official.archives)], stderr=subprocess.DEVNULL)
    while len(workers := _children(process.pid)) < 2 or not list((tmp_path / "out").glob("labels/*/*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
