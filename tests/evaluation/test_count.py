"""Every image is counted exactly once: in any batches, by any number of processes, and through interruptions."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from dinov3seg_jax.config import Config, DatasetConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import count, hosts, progress
from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix, image_miou, scores
from dinov3seg_jax.evaluation.count import count_pixels
from dinov3seg_jax.evaluation.progress import Progress, identify, load_progress, progress_file, remove_progress
from tests.evaluation.stub import CLASSES, Reading, dataset

IDENTITY = {"config": "a", "checkpoint": "b", "data set": "c"}


def one_by_one(data):
    """Counts and image scores in the plainest way."""
    matrix, image_scores = ConfusionMatrix(len(CLASSES)), []
    for index in range(len(data.source)):
        example = data.source[index]
        predicted = (example["image"][..., 0] % len(data.classes)).astype(np.int32)
        if data.merge_from is not None:
            predicted = np.minimum(predicted, data.merge_from)
        matrix.add(predicted, example["label"])
        own = ConfusionMatrix(len(CLASSES))
        own.add(predicted, example["label"])
        image_scores.append(scores(own.counts)["miou"])
    return matrix.counts, np.array(image_scores)


def run(data, folder, segmenter=None, identity=IDENTITY):
    segmenter = segmenter or Reading()
    return count_pixels(segmenter, data, data.classes, len(CLASSES), folder, identity)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("images", [1, 8, 13])
def test_counts_do_not_depend_on_the_batches(tmp_path, monkeypatch, batch_size, images):
    monkeypatch.setattr(count, "BATCH_SIZE", batch_size)
    data, segmenter = dataset(images), Reading()
    found = run(data, tmp_path, segmenter)
    counts, image_scores = one_by_one(data)
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.image_miou, image_scores, rtol=1e-12)
    assert segmenter.batches == [min(batch_size, images - start) for start in range(0, images, batch_size)]
    assert found.done == images


def test_the_score_of_an_image_without_labels_is_no_number():
    assert np.isnan(image_miou(np.zeros((2, 3), int), np.full((2, 3), IGNORED), 4))


def test_predictions_beyond_the_merged_class_count_as_it(tmp_path):
    names = (*CLASSES, "dune", "cloud")
    data = dataclasses.replace(dataset(6), classes=names, merge_from=4)
    found = run(data, tmp_path)
    counts, _ = one_by_one(data)
    np.testing.assert_array_equal(found.counts, counts)
    assert found.counts[4].sum() > sum(found.counts[:4].sum(axis=1)) / 8, "it also holds those of the two others"


def test_an_image_that_cannot_be_read_is_named_and_what_was_counted_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(count, "BATCH_SIZE", 3)
    segmenter = Reading()
    with pytest.raises(UserError, match="image 7.png is damaged"):
        run(dataset(11, broken=(7,)), tmp_path, segmenter)
    assert segmenter.seen == 6, "two whole batches"
    assert load_progress(progress_file(tmp_path), IDENTITY, len(CLASSES)).done == 6
    mended = Reading()
    found = run(dataset(11), tmp_path, mended)
    assert mended.seen == 5
    np.testing.assert_array_equal(found.counts, one_by_one(dataset(11))[0])
    assert run(dataset(11), tmp_path, mended).done == 11
    assert mended.seen == 5, "nothing is left to do"
    remove_progress(tmp_path)
    assert not any(tmp_path.iterdir())


class StoppedError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_stop_at_any_batch_changes_nothing(tmp_path, monkeypatch, stop):
    monkeypatch.setattr(count, "BATCH_SIZE", 2)
    monkeypatch.setattr(count, "SAVE_SECONDS", 0.0)

    class Stopping(Reading):
        def segment_arrays(self, images, names, batch_size=1):
            if len(self.batches) == stop:
                raise StoppedError
            return super().segment_arrays(images, names, batch_size)

    with pytest.raises(StoppedError):
        run(dataset(12), tmp_path, Stopping())
    rest = Reading()
    found = run(dataset(12), tmp_path, rest)
    counts, image_scores = one_by_one(dataset(12))
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.image_miou, image_scores, rtol=1e-12)
    assert rest.seen == 12 - 2 * stop


@pytest.mark.parametrize("what", list(IDENTITY))
def test_the_progress_of_something_else_is_not_continued(tmp_path, capsys, what):
    run(dataset(5), tmp_path)
    segmenter = Reading()
    run(dataset(5), tmp_path, segmenter, IDENTITY | {what: "other"})
    assert segmenter.seen == 5
    assert f"is of another {what}; starting over" in capsys.readouterr().out


def test_damaged_progress_is_not_continued(tmp_path, capsys):
    progress_file(tmp_path).write_bytes(b"PK")
    segmenter = Reading()
    run(dataset(5), tmp_path, segmenter)
    assert segmenter.seen == 5
    assert "cannot be read" in capsys.readouterr().out


def test_what_an_evaluation_is_identified_by(tmp_path):
    class Files:
        def __len__(self):
            return 1

        def files(self, index):
            return "a", tmp_path / "a.jpg", tmp_path / "a.png"

    for name in ("a.jpg", "a.png", "weights"):
        (tmp_path / name).write_bytes(b"12")
    data = dataclasses.replace(dataset(1), source=Files())

    def now(split="train", data=data, **recipe):
        recipe = [dataclasses.replace(Config().inference, **recipe)]
        return identify(recipe, [tmp_path / "weights"], DatasetConfig(split=split), data)

    first = now()
    assert now() == first

    def changed(other):
        return {name for name in first if first[name] != other[name]}

    assert changed(now(stride=64)) == {"config"}
    assert changed(now(split="eval")) == {"data set"}
    assert changed(now(data=dataclasses.replace(data, merge_from=2))) == {"data set"}
    (tmp_path / "a.png").write_bytes(b"123")
    assert changed(now()) == {"data set"}
    (tmp_path / "a.png").unlink()
    assert changed(now()) == {"data set"}
    (tmp_path / "weights").write_bytes(b"")
    assert changed(now()) == {"data set", "checkpoint"}


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_all_images_out(tmp_path, monkeypatch, processes):
    """Their exchange is played: what each gives is kept, and in a second round handed to every one."""
    data = dataset(7)
    alone = run(data, tmp_path / "alone")
    given = []
    monkeypatch.setattr(hosts.jax, "process_count", lambda: processes)
    for turn in ("give", "take"):
        for process in range(processes):
            monkeypatch.setattr(hosts.jax, "process_index", lambda process=process: process)
            calls = iter(range(4))

            def exchange(halves, calls=calls, process=process, turn=turn):
                call = next(calls)
                if turn == "give":
                    given.append((call, halves.copy()))
                    return np.stack([halves] * processes)
                return np.stack([value for number, value in given if number == call])

            monkeypatch.setattr(hosts, "process_allgather", exchange)
            folder = tmp_path / turn
            found = run(data, folder)
            if turn == "take":
                counts, image_scores = one_by_one(data)
                np.testing.assert_array_equal(found.counts, counts)
                np.testing.assert_array_equal(found.measures, alone.measures)
                np.testing.assert_allclose(found.image_miou, image_scores, rtol=1e-12)
    assert len(list((tmp_path / "take").glob("partial.*.npz"))) == processes


def test_one_process_that_fails_stops_the_others(monkeypatch):
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    flags = np.array([[0], [1]], np.int64).view(np.uint32)
    monkeypatch.setattr(hosts, "process_allgather", lambda halves: flags)
    with pytest.raises(UserError, match="process 1 could not read its images"):
        hosts.stop_together(None)
    with pytest.raises(UserError, match="mine"):
        hosts.stop_together(UserError("mine"))


def test_large_counts_are_exchanged_bit_for_bit(monkeypatch):
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "process_allgather", lambda halves: np.stack([halves, halves]))
    counts = np.array([[2**40 + 1, 2**62 - 1], [3, 0]])
    np.testing.assert_array_equal(hosts.sum_counts(counts), 2 * counts)


@pytest.mark.slow
def test_two_thousand_images_of_847_classes_are_exact_and_take_no_memory():
    classes, random = 847, np.random.default_rng(0)
    pictures = [random.integers(0, classes, (512, 683), np.int32) for _ in range(4)]
    truths = [random.integers(IGNORED, classes, (512, 683), np.int32) for _ in range(5)]
    matrix = ConfusionMatrix(classes)
    expected = np.zeros((classes, classes + 1), np.int64)
    pairs = {}
    matrix.add(pictures[0], truths[0])  # what numpy keeps from its first call is not growth
    matrix.counts[:] = 0
    tracemalloc.start()
    for index in range(2000):
        picture, truth = index % 4, index % 5
        matrix.add(pictures[picture], truths[truth])
        pairs[picture, truth] = pairs.get((picture, truth), 0) + 1
        if index == 20:
            early = tracemalloc.get_traced_memory()
    late = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"peak {late[1] / 2**20:.1f} MiB, growth {(late[0] - early[0]) / 2**20:.3f} MiB")
    assert late[0] - early[0] < 2**16
    assert late[1] < 60 * 2**20
    for (picture, truth), times in pairs.items():
        columns = np.where(truths[truth] == IGNORED, classes, truths[truth])
        np.add.at(expected, (pictures[picture], columns), times)
    np.testing.assert_array_equal(matrix.counts, expected)
    assert matrix.counts.sum() == 2000 * 512 * 683


SCRIPT = """
import json, sys
from pathlib import Path
import jax
folder, devices, rank, port, save_seconds = Path(sys.argv[1]), *map(int, sys.argv[2:5]), float(sys.argv[5])
jax.config.update("jax_num_cpu_devices", devices)
if rank >= 0:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
from dinov3seg_jax.cache.programs import keep_programs
keep_programs()
from dinov3seg_jax.config_files import from_dict
from dinov3seg_jax.evaluation import count
from dinov3seg_jax.evaluation.evaluate import evaluate
count.SAVE_SECONDS, count.BATCH_SIZE = save_seconds, 4
config = from_dict(json.loads((folder / "config.json").read_text()))
evaluate(config, folder)
"""
SCENES = 26


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Makes the folder of a run of a tiny model, with random parameters."""
    from dinov3seg_jax.config import DataConfig
    from tests.saved_run import CONFIG, save_run

    data = DataConfig(eval=DatasetConfig(split="eval", size=SCENES, image_size=48))
    config = dataclasses.replace(CONFIG, data=data, report_images=2)
    return lambda name: save_run(tmp_path_factory.mktemp(name), config)


def start(folder, devices=1, rank=-1, port=0, save_seconds=30.0):
    words = [str(word) for word in (folder, devices, rank, port, save_seconds)]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],
        env=environment | {"DINOV3SEG_CACHE": str(folder.parent / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def metrics(folder):
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith("_seconds")}


def rounded(found):
    """Scores to a few pixels: of two classes with nearly equal scores, another batch size may take the other.

    A picture that is left out or counted twice changes the pixels of a class, which are whole numbers and stay exact.
    """
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return pytest.approx(found, abs=0.05) if isinstance(found, float) else found


@pytest.mark.slow
def test_devices_and_processes_agree(make_run):
    alone, eight, both = (make_run(name) for name in ("alone", "eight", "both"))
    finish(start(alone))
    finish(start(eight, devices=8))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [start(both, devices=2, rank=rank, port=port) for rank in (0, 1)]
    try:
        for process in pair:
            finish(process)
    finally:
        for process in pair:
            process.kill()
    pixels = sum(row["pixels"] for row in metrics(alone)["classes"])
    assert pixels == SCENES * 48 * 48
    for folder in (eight, both):
        assert metrics(folder) == rounded(metrics(alone))
        assert not list(folder.glob("partial*"))


@pytest.mark.slow
def test_kills_change_nothing(make_run):
    """Ten: six when a process has counted one, two or three batches, two in its report, two while it starts."""
    straight, killed = make_run("straight"), make_run("killed")
    finish(start(straight, save_seconds=0.0))  # which compiles
    (straight / "metrics.json").unlink()
    process, began = start(straight, save_seconds=0.0), time.monotonic()
    assert counted_more(straight, process, 0)
    ready = time.monotonic()
    assert counted_more(straight, process, SCENES - 1)
    counted = time.monotonic()
    finish(process)
    batch, report = (counted - ready) / (SCENES // 4), time.monotonic() - counted
    kills, ahead = 0, []
    while kills < 10:
        process = start(killed, save_seconds=0.0)
        begun = load_done(killed)
        if kills % 5 == 4:
            time.sleep((0.5 + kills / 20) * (ready - began))
        elif kills % 5 == 3 and counted_more(killed, process, SCENES - 1):
            time.sleep(kills / 10 * report)
        elif counted_more(killed, process, begun + 4 * (kills % 5)):
            time.sleep(kills / 10 * batch)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        ahead.append(load_done(killed))
        if (killed / "metrics.json").is_file():  # it got through: once more
            assert metrics(killed) == metrics(straight)
            (killed / "metrics.json").unlink()
    assert len(set(ahead)) > 2, "some of them had counted"
    printed = finish(start(killed, save_seconds=0.0))
    assert metrics(killed) == metrics(straight)
    assert not list(killed.glob("partial*"))
    print(ahead, printed[-300:])


def counted_more(folder, process, begun):
    """Wait until an evaluation has counted more images; whether it did before it ended."""
    deadline = time.monotonic() + 400
    while load_done(folder) <= begun:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return True


def load_done(folder):
    path = folder / "partial.npz"
    try:
        with np.load(path) as arrays:
            return len(arrays["image_miou"])
    except FileNotFoundError:
        return 0


def test_progress_survives_disk(tmp_path):
    saved = Progress(np.arange(6).reshape(2, 3), np.array([1.5, np.nan]), 2.5, np.arange(4))
    progress.save_progress(progress_file(tmp_path), saved, IDENTITY)
    loaded = load_progress(progress_file(tmp_path), IDENTITY, 2)
    for ours, theirs in zip(saved, loaded, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        progress.save_progress(progress_file(blocked), saved, IDENTITY)
