"""Pieces of work, as a worker does them: with what results, and what is done again."""

import json
import os
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dinov3seg_jax.cluster.tables import Made, made_from
from dinov3seg_jax.cluster.units import IN_A_TABLE, Unit, _place, clear_units
from dinov3seg_jax.cluster.work import Asked, Listed, Work
from dinov3seg_jax.data.scenes import AS_IT_IS
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.inference import load as loading
from dinov3seg_jax.pictures.batches import segment_pictures
from dinov3seg_jax.pictures.finished import ALONE, Picture
from dinov3seg_jax.text.class_lists import ClassList
from tests.cluster.test_shards import write_tar
from tests.pictures.test_folder_runs import contents, make_pictures

PLENTY = 10**12
ENDED = 2**22 + 1  # no process has so large a number
NAMES = ClassList.of("red circle, grass, sky")


def asked_for(outputs):
    return Asked(Path("run"), "newest", (), False, NAMES, 2, PLENTY, AS_IT_IS, outputs)


@pytest.fixture
def work(monkeypatch, model):
    """A worker that has loaded the small model."""
    monkeypatch.setattr(loading, "load", lambda *_, zero_shot: model)
    return lambda outputs=ALONE: Work(asked_for(outputs))


@pytest.fixture
def pictures(tmp_path):
    folder = make_pictures(tmp_path / "pictures", [(30, 40), (20, 20), (30, 40)])
    (folder / "001.png").write_bytes(b"no picture")
    return tuple(Picture(path, tmp_path / "out" / path.stem, path.name) for path in sorted(folder.iterdir()))


@pytest.fixture
def usual(model, pictures, tmp_path):
    """What one machine writes of these pictures."""
    there = [picture._replace(target=tmp_path / "usual" / picture.path.stem) for picture in pictures]
    list(segment_pictures(model, NAMES, there, set(there), 2, PLENTY))
    return contents(tmp_path / "usual")


def test_files_to_files(work, pictures, usual, tmp_path):
    piece = pickle.loads(pickle.dumps(Listed(pictures, pictures)))
    outcomes = {outcome.picture: outcome for outcome in work().do(piece)}
    assert outcomes.keys() == set(pictures)
    assert "is no picture that can be read" in outcomes[pictures[1]].error
    assert contents(tmp_path / "out") == usual
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = {outcome.picture: outcome for outcome in work().do(piece)}  # as after a death
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert again[pictures[0]].summary == json.loads(pictures[0].summary.read_text())


def test_files_to_a_table(work, pictures, usual, tmp_path):
    unit = Unit(tmp_path / "out" / "part", True, pictures)
    assert not unit.is_done()
    assert len(list(work(IN_A_TABLE).do(unit))) == 3
    table = pq.read_table(unit.mark)
    assert json.loads(table.schema.metadata[b"classes"]) == list(NAMES.names)
    first, broken, last = table.to_pylist()
    assert [row["path"] for row in (first, broken, last)] == ["000.png", "001.png", "002.png"]
    for row in (first, last):
        stem = row["path"].removesuffix(".png")
        assert row["labels"] == usual[Path(f"{stem}_labels.png")]
        summary = json.loads(usual[Path(f"{stem}.json")])
        assert (row["width"], row["height"]) == (40, 30)
        assert row["areas"] == [one["pixels"] for one in summary["classes"]]
        assert row["confidences"] == [one["mean_confidence"] for one in summary["classes"]]
        assert row["error"] is None
    assert broken["labels"] is None
    assert broken["error"].startswith("001.png is no picture that can be read")
    assert made_from(unit.mark) == Made(unit.state(), 1)
    assert not unit.is_done()  # one picture failed: next time it is tried again
    pictures[1].path.write_bytes(pictures[0].path.read_bytes())
    list(work(IN_A_TABLE).do(unit))
    assert unit.is_done()
    pictures[2].path.touch()
    assert not unit.is_done()


@pytest.mark.parametrize("table", [False, True])
def test_a_tar(work, pictures, usual, tmp_path, table):
    files = {picture.path.name: picture.path.read_bytes() for picture in pictures}
    shard = Picture(write_tar(tmp_path / "s.tar", files), tmp_path / "out" / "s", "s.tar")
    unit = Unit(shard.target, table, shard=shard)
    outcomes = list(work(IN_A_TABLE if table else Outputs()).do(unit))
    assert [str(outcome.picture.path) for outcome in outcomes if outcome.error] == ["s.tar/001.png"]
    assert next(filter(None, (outcome.error for outcome in outcomes))).startswith("s.tar/001.png is no picture")
    if table:
        rows = pq.read_table(unit.mark).to_pylist()
        assert [row["labels"] for row in rows] == [usual[Path("000_labels.png")], None, usual[Path("002_labels.png")]]
    else:
        labels = {path.name: path.read_bytes() for path in (tmp_path / "out" / "s").glob("*_labels.png")}
        assert labels == {path.name: content for path, content in usual.items() if path.name.endswith("_labels.png")}
    write_tar(tmp_path / "s.tar", {"0.png": files["000.png"]})
    list(work(IN_A_TABLE if table else Outputs()).do(unit))
    assert unit.is_done()


@pytest.mark.parametrize("table", [False, True])
def test_what_dead_workers_left_beside_the_results_is_cleared_away(work, pictures, tmp_path, table):
    files = {picture.path.name: picture.path.read_bytes() for picture in pictures}
    shard = Picture(write_tar(tmp_path / "s.tar", files), tmp_path / "out" / "s", "s.tar")
    unit = Unit(shard.target, table, shard=shard)
    list(work(IN_A_TABLE if table else Outputs()).do(unit))
    before = contents(tmp_path / "out")
    one = unit.mark if table else unit.target / "000.json"
    half = one.with_name(f".{one.name}.{ENDED}")
    stay = [one.with_name(f".{one.name}.{os.getppid()}"), one.with_name(f".other.{ENDED}"), tmp_path / f".x.{ENDED}"]
    for path in (half, *stay):
        path.touch()
    clear_units([unit])
    assert not half.exists()
    for path in stay:
        path.unlink()
    assert contents(tmp_path / "out") == before


def test_a_shard_that_cannot_be_read_is_told_by_its_name(work, tmp_path):
    shard = Picture(tmp_path / "s.tar", tmp_path / "out" / "s", "s.tar")
    (outcome,) = work().do(Unit(shard.target, False, shard=shard))
    assert "s.tar cannot be read (No such file" in outcome.error


def test_results_that_cannot_be_written(work, pictures, tmp_path):
    (tmp_path / "out").write_bytes(b"a file")
    outcomes = list(work(IN_A_TABLE).do(Unit(tmp_path / "out" / "part", True, pictures[:1])))
    assert "cannot be written" in outcomes[-1].error


def test_an_error_of_a_library_is_its_pictures_own(work, pictures, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dinov3seg_jax.cluster.work.segment_pictures", fail)
    outcomes = list(work().do(Listed(pictures, pictures)))
    assert [outcome.picture for outcome in outcomes] == list(pictures)
    assert "could not be segmented (ZeroDivisionError: a bug)" in outcomes[0].error


def test_names_within_a_shard_lead_nowhere_else_and_to_one_place_each():
    taken = set()
    names = ["a/0.jpg", "../0.jpg", "/0.png", "0.png", "a/0.png", ".png"]
    assert [_place(name, taken) for name in names] == ["a/0", "0", "0_png", "0_3", "a/0_png", ".png"]


def test_what_says_that_it_is_done_and_is_nothing_of_the_kind(tmp_path):
    unit = Unit(tmp_path / "x", False)
    for content in (b"", b"[]", b"{}"):
        unit.mark.write_bytes(content)
        assert not unit.is_done()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not")
    assert made_from(tmp_path / "x.parquet") is None
