"""Prepared folders, and the array_record files written from them, hold the same examples."""

import errno
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.datasets import Dataset, open_dataset
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.data.tfds_builder import write_records
from dinov3seg_jax.data.tfds_source import find_records
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation.count import count_pixels
from dinov3seg_jax.evaluation.progress import remove_progress
from tests.data.archives import MAKERS
from tests.evaluation.stub import Reading


def prepared(root: Path, name: str, files: int = 3) -> Path:
    """A prepared folder of noise; labels hold every class that fits, and "no label"."""
    benchmark = BENCHMARKS[name]
    wide = benchmark.class_count > 255
    ignore = 65535 if wide else 255
    rng = np.random.default_rng(0)
    for split in benchmark.splits:
        for folder in ("images", "labels"):
            (root / folder / split / "sub").mkdir(parents=True)
        for number in range(files):
            place = f"sub/{number}" if number else "first"
            picture = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
            picture.save(root / "images" / split / f"{place}{'.png' if number == 1 else '.jpg'}")
            label = rng.choice([*range(benchmark.class_count), ignore], (24, 40))
            label[0, :2] = ignore, benchmark.class_count - 1
            Image.fromarray(label.astype(np.uint16 if wide else np.uint8)).save(root / f"labels/{split}/{place}.png")
    manifest = {
        "format": 1,
        "dataset": name,
        "classes": benchmark.classes,
        "ignore": ignore,
        "source": "noise",
        "splits": {split: {"files": files, "pixels": [], "ignored_pixels": 1} for split in benchmark.splits},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def _same(first: Dataset, second: Dataset) -> None:
    assert (first.classes, first.merge_from) == (second.classes, second.merge_from)
    assert len(first.source) == len(second.source)
    for index in range(len(first.source)):
        one, other = first.source[index], second.source[index]
        assert one["name"] == other["name"]
        for key in ("image", "label"):
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


def _sentence(part: str, call, *arguments) -> None:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_prepared_folder_and_its_records_are_the_same(tmp_path, name):
    source = prepared(tmp_path / "prepared" / name, name)
    written = write_records(name, source, tmp_path / "records")
    assert written == tmp_path / "records" / name / "1.0.0"
    for split in BENCHMARKS[name].splits:
        folder = open_dataset(DatasetConfig(name=name, split=split, root=str(source)))
        label = folder.source[0]["label"]
        assert [label[0, 0], label[0, 1]] == [-1, BENCHMARKS[name].class_count - 1]
        assert folder.classes == BENCHMARKS[name].names
        official = BENCHMARKS[name].splits[split].name
        for root in (tmp_path / "records", tmp_path / "records" / name, written, tmp_path / "prepared"):
            _same(folder, open_dataset(DatasetConfig(name=name, split=official, root=str(root))))
        _same(folder, open_dataset(DatasetConfig(name="folder", split=split, root=str(written))))


@pytest.mark.parametrize("name", MAKERS)
def test_official_files_prepared_and_as_records_are_the_same(tmp_path, name):
    official = MAKERS[name](tmp_path)
    prepare(name, [official.tree], tmp_path / "prepared", allow_partial=True)
    write_records(name, tmp_path / "prepared", tmp_path / "records")
    for split, labels in official.labels.items():
        folder, records = (
            open_dataset(DatasetConfig(name=name, split=split, root=str(tmp_path / kind)))
            for kind in ("prepared", "records")
        )
        _same(folder, records)
        examples = [folder.source[index] for index in range(len(folder.source))]
        assert {Path(example["name"]).name for example in examples} == labels.keys()
        for example in examples:
            np.testing.assert_array_equal(example["label"], labels[Path(example["name"]).name])
        counts = [_counts(dataset, name, tmp_path / "run") for dataset in (folder, records)]
        np.testing.assert_array_equal(*counts)
        assert counts[0].sum() == sum(label.size for label in labels.values())


def _counts(dataset: Dataset, name: str, folder: Path) -> np.ndarray:
    """What an evaluation of the first red value counts."""
    classes = BENCHMARKS[name].class_count
    found = count_pixels(Reading(), dataset, dataset.classes, classes, folder, {"config": ""})
    remove_progress(folder)
    return found.counts


def test_records_travel_to_worker_processes(tmp_path):
    written = write_records("voc_20", prepared(tmp_path / "voc_20", "voc_20"), tmp_path)
    source = open_dataset(DatasetConfig(name="voc_20", split="eval", root=str(written))).source
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["label"], source[2]["label"])
    with pytest.raises(IndexError):
        source[3]


def test_reading_and_writing_records_needs_no_tensorflow(tmp_path):
    source = prepared(tmp_path / "voc_20", "voc_20")
    command = [sys.executable, "-m", "dinov3seg_jax.data.tfds_builder", "voc_20"]
    subprocess.run([*command, "--source", str(source), "--out", str(tmp_path / "out")], check=True, capture_output=True)
    read = (
        "import sys; from dinov3seg_jax.config import DatasetConfig; from dinov3seg_jax.data.datasets import *;"
        f"d = open_dataset(DatasetConfig(name='voc_20', split='eval', root={str(tmp_path / 'out')!r}));"
        "print(d.source[1]['name'], 'tensorflow' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", read], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["sub/1", "False", "False"]


def test_opening_a_folder_does_not_import_tfds(tmp_path):
    source = prepared(tmp_path / "voc_20", "voc_20")
    read = (
        "import sys; from dinov3seg_jax.config import DatasetConfig; from dinov3seg_jax.data.datasets import *;"
        f"open_dataset(DatasetConfig(name='voc_20', split='eval', root={str(source)!r})).source[0];"
        "print('tensorflow_datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", read], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_what_is_complete_is_not_written_again_and_another_is_not_replaced(tmp_path):
    source = prepared(tmp_path / "voc_20", "voc_20")
    written = write_records("voc_20", source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    shutil.copytree(written, tmp_path / "out" / "voc_20" / "incomplete.AB_1.0.0")  # killed just before its renaming
    assert find_records(tmp_path / "out" / "voc_20") == written
    assert write_records("voc_20", source, tmp_path / "out") == written
    assert before == {path: path.stat().st_mtime_ns for path in written.iterdir()}
    other = prepared(tmp_path / "other", "voc_20", files=2)
    _sentence("was written from another folder", write_records, "voc_20", other, tmp_path / "out")
    _sentence("is a prepared 'voc_20', not 'voc_20b'", write_records, "voc_20b", source, tmp_path / "out")


def test_an_incomplete_prepared_folder_is_refused(tmp_path):
    source = prepared(tmp_path / "voc_20", "voc_20")
    config = DatasetConfig(name="voc_20", split="eval", root=str(source))
    (source / "labels/eval/first.png").unlink()
    (source / "images/eval/first.jpg").unlink()
    _sentence("holds 2 pairs of its split 'eval', where its manifest.json counts 3", open_dataset, config)
    _sentence("counts 3", write_records, "voc_20", source, tmp_path / "out")
    assert not (tmp_path / "out" / "voc_20" / "1.0.0").exists()
    (source / "manifest.json").unlink()
    _sentence("has no manifest.json", open_dataset, config)
    _sentence("manifest.json does not exist", write_records, "voc_20", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"format": 2}, "no manifest of format 1"),
        ({"classes": ["cat"]}, "lists other classes than Pascal VOC-20"),
        ({"splits": None}, "lacks or garbles"),
        ({"dataset": "voc_20b"}, "lists other classes than Pascal VOC-20b"),
    ],
)
def test_a_manifest_that_contradicts_the_package_is_refused(tmp_path, change, part):
    source = prepared(tmp_path / "voc_20", "voc_20")
    path = source / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    _sentence(part, open_dataset, DatasetConfig(name="voc_20", split="eval", root=str(source)))


def test_another_data_set_or_split_is_refused(tmp_path):
    source = prepared(tmp_path / "voc_20", "voc_20")
    root = str(source)
    _sentence("holds the data set 'voc_20', not 'voc_20b'", open_dataset, DatasetConfig("voc_20b", "eval", root))
    _sentence("has no split 'train'; use eval", open_dataset, DatasetConfig("voc_20", "train", root))


def test_sixteen_bit_labels_that_were_saved_with_8_are_refused(tmp_path):
    source = prepared(tmp_path / "ade20k_847", "ade20k_847")
    label = np.asarray(Image.open(source / "labels/eval/first.png"))
    Image.fromarray(label.astype(np.uint8)).save(source / "labels/eval/first.png")
    config = DatasetConfig("ade20k_847", "eval", str(source))
    _sentence("8 bits a pixel where 16 are due", open_dataset(config).source.__getitem__, 0)


def test_a_damaged_picture_is_named(tmp_path):
    source = prepared(tmp_path / "voc_20", "voc_20")
    picture = source / "images/eval/sub/2.jpg"
    picture.write_bytes(picture.read_bytes()[:200])
    for root in (source, write_records("voc_20", source, tmp_path / "out")):
        examples = open_dataset(DatasetConfig("voc_20", "eval", str(root))).source
        _sentence("sub/2", examples.__getitem__, 2)
        assert examples[1]["name"] == "sub/1"


def test_a_full_disk_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    source = prepared(tmp_path / "voc_20", "voc_20")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tensorflow_datasets.core.writer.Writer.write", full)
        _sentence("No space left on device", write_records, "voc_20", source, tmp_path / "out")
    _sentence("does not exist", open_dataset, DatasetConfig("voc_20", "eval", str(tmp_path / "out")))
    written = write_records("voc_20", source, tmp_path / "out")
    assert len(open_dataset(DatasetConfig("voc_20", "eval", str(written))).source) == 3


def test_records_with_a_file_missing_are_refused(tmp_path):
    written = write_records("voc_20", prepared(tmp_path / "voc_20", "voc_20"), tmp_path / "out")
    copy = Path(shutil.copytree(written, tmp_path / "copy"))
    next(copy.glob("*array_record*")).unlink()
    _sentence("does not exist; copy the folder again", open_dataset, DatasetConfig("voc_20", "eval", str(copy)))


def test_one_of_ones_own_may_be_prepared_too(tmp_path):
    for folder, picture in (
        ("images", Image.new("RGB", (3, 1))),
        ("labels", Image.fromarray(np.array([[0, 1, 255]], np.uint8))),
    ):
        (tmp_path / folder / "train").mkdir(parents=True)
        picture.save(tmp_path / folder / "train" / "a.png")
    manifest = {
        "format": 1,
        "dataset": "pets",
        "classes": ["cat", "dog"],
        "ignore": 255,
        "splits": {"train": {"files": 1}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    written = write_records("pets", tmp_path, tmp_path / "out")
    for root in (tmp_path, written):
        dataset = open_dataset(DatasetConfig(name="folder", root=str(root)))
        assert dataset.classes == ("cat", "dog")
        np.testing.assert_array_equal(dataset.source[0]["label"], [[0, 1, -1]])


def test_names_that_scoring_refuses_are_not_written(tmp_path):
    manifest = {"format": 1, "dataset": "mine", "classes": ["Grass", "grass"], "ignore": 255, "splits": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    _sentence(f"in {tmp_path / 'manifest.json'}, the class name", write_records, "mine", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_is_cut_off_is_refused(tmp_path):
    source = prepared(tmp_path / "voc_20", "voc_20")
    (source / "manifest.json").write_text("{")
    _sentence("manifest.json cannot be read", open_dataset, DatasetConfig("voc_20", "eval", str(source)))


def test_records_that_were_cut_short_are_refused(tmp_path):
    written = write_records("voc_20", prepared(tmp_path / "voc_20", "voc_20"), tmp_path / "out")
    metadata = written / "metadata.json"
    values = json.loads(metadata.read_text())
    values["splits"]["eval"]["files"] = 4
    metadata.write_text(json.dumps(values))
    _sentence("holds 3 examples of 'eval', not 4", open_dataset, DatasetConfig("voc_20", "eval", str(written)))


def test_records_without_what_reads_them_are_one_sentence(tmp_path, monkeypatch):
    written = write_records("voc_20", prepared(tmp_path / "voc_20", "voc_20"), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    _sentence("need tensorflow_datasets; install it", open_dataset, DatasetConfig("voc_20", "eval", str(written)))
