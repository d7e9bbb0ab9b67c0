"""From the official archives' layout to the table: the scores are those of the pixels that archives were made of."""

import csv
import dataclasses
import json
import sys

import numpy as np
import pytest

import eval as eval_script
from dinov3seg_jax.config import Config, DataConfig, DatasetConfig
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.data.tfds_builder import write_records
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import evaluate
from dinov3seg_jax.evaluation.evaluate import Model, evaluate_benchmarks
from dinov3seg_jax.inference.load import OpenModel
from dinov3seg_jax.store.run import RunFolder
from tests.data.archives import IGNORED, MAKERS
from tests.evaluation.stub import Reading


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepares the miniature of a data set, once: the folder above it, and the miniature."""
    root, made = tmp_path_factory.mktemp("prepared"), {}

    def get(name):
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp(name), pictures=5)
            prepare(name, made[name].archives, root / name, allow_partial=True)
        return root, made[name]

    return get


@pytest.fixture
def segmenter(monkeypatch):
    """Takes the place of the model."""
    reading = Reading()
    monkeypatch.setattr(
        evaluate,
        "open_to_score",
        lambda config, checkpoint, zero_shot: Model(
            reading, config, OpenModel(RunFolder(checkpoint), "zero_shot", config, {})
        ),
    )
    return reading


def configured(root, *names):
    data = DataConfig(eval=DatasetConfig(split="eval", root=str(root)))
    return Config(data=data, benchmarks=names, report_images=2)


def score(config, folder):
    text = evaluate_benchmarks(config, folder, zero_shot=True)
    assert (folder / "zero_shot" / "benchmarks.md").read_text() == text
    assert not list(folder.rglob("partial*"))
    reports = {name: folder / "zero_shot" / name for name in config.benchmarks}
    found = {name: json.loads((report / "metrics.json").read_text()) for name, report in reports.items()}
    for name, report in reports.items():
        with (report / "classes.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in rows] == list(BENCHMARKS[name].classes)
        assert [int(row["pixels"]) for row in rows] == [row["pixels"] for row in found[name]["classes"]]
        assert (report / "confusion.png").is_file()
    written = json.loads((folder / "zero_shot" / "benchmarks.json").read_text())
    assert {name: written["ours"][name] for name in found} == {name: of["miou"] for name, of in found.items()}
    return {name: {key: value for key, value in of.items() if key != "eval_seconds"} for name, of in found.items()}


def expected_scores(root, miniature):
    """mIoU in percent, over the classes in the truth and over those in either, and the pixels of each class.

    From the labels that the archives were made of.
    """
    name = miniature.dataset
    benchmark, names = BENCHMARKS[name], BENCHMARKS[name].names
    counts = np.zeros((benchmark.class_count, benchmark.class_count), np.int64)
    source = open_dataset(DatasetConfig(name=name, split="eval", root=str(root))).source
    labels = dict(miniature.labels["eval"])
    for index in range(len(source)):
        example = source[index]
        truth = labels.pop(example["name"].split("/")[-1])
        predicted = example["image"][..., 0].astype(int) % len(names)
        if name == "voc_20b":
            predicted[predicted >= 20] = 20
        np.add.at(counts, (predicted[truth != IGNORED], truth[truth != IGNORED]), 1)
    assert not labels, "every label has its image"
    correct, pixels = np.diag(counts), counts.sum(axis=0)
    union = pixels + counts.sum(axis=1) - correct
    present, either = (100 * np.mean(correct[which > 0] / union[which > 0]) for which in (pixels, union))
    return present, either, pixels


@pytest.mark.parametrize("name", MAKERS)
def test_from_archives_to_scores(prepared, segmenter, tmp_path, name):
    root, miniature = prepared(name)
    found = score(configured(root, name), tmp_path)[name]
    present, either, pixels = expected_scores(root, miniature)
    assert found["miou"] == pytest.approx(present, rel=1e-12)
    assert found["torchmetrics_miou"] == pytest.approx(either, rel=1e-12)
    assert [row["pixels"] for row in found["classes"]] == pixels.tolist()
    assert found["images"] == len(miniature.labels["eval"])


@pytest.mark.parametrize(
    "name", [name if name == "voc_20b" else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS]
)
def test_records_score_as_the_folder_they_were_written_from(prepared, segmenter, tmp_path, name):
    root, _ = prepared(name)
    write_records(name, root / name, tmp_path / "records")
    of_records = score(configured(tmp_path / "records", name), tmp_path / "a")
    assert of_records == score(configured(root, name), tmp_path / "b")


def test_several_at_once_and_on_after_a_stop(prepared, segmenter, tmp_path, monkeypatch, capsys):
    names = ("voc_20", "voc_20b", "ade20k_150")
    for name in names:
        root, _ = prepared(name)
    straight = score(configured(root, *names), tmp_path / "straight")
    printed = capsys.readouterr().out
    assert "Pascal VOC-20b: 5 images, 59 names" in printed
    source = type(open_dataset(DatasetConfig(name="ade20k_150", split="eval", root=str(root))).source)
    read, damaged = source.__getitem__, []

    def refuse(self, index):
        example = read(self, index)
        if damaged and example["label"].max() > 60:  # some picture of ADE20K
            raise UserError(f"image {example['name']} is damaged; copy it again.")
        return example

    monkeypatch.setattr(source, "__getitem__", refuse)
    damaged.append(True)
    with pytest.raises(UserError, match="^image .* is damaged; copy it again.$"):
        evaluate_benchmarks(configured(root, *names), tmp_path / "stopped", zero_shot=True)
    assert not (tmp_path / "stopped" / "zero_shot" / "benchmarks.md").exists()
    damaged.clear()
    capsys.readouterr()
    assert score(configured(root, *names), tmp_path / "stopped") == straight
    assert capsys.readouterr().out.count("images are counted") == 3, "two are complete, and one goes on"


def test_the_command_prints_the_table(prepared, segmenter, tmp_path, monkeypatch, capsys):
    root, _ = prepared("voc_20b")
    words = ["--config", "configs/benchmarks.py", "--config.benchmarks=voc_20b", f"--config.data.eval.root={root}"]
    monkeypatch.setattr(sys, "argv", ["eval.py", *words, "--checkpoint", str(tmp_path), "--zero_shot"])
    eval_script.main()
    printed = capsys.readouterr().out
    assert (tmp_path / "zero_shot" / "benchmarks.md").read_text() in printed
    assert printed.endswith(f"{tmp_path / 'zero_shot' / 'benchmarks.md'} and benchmarks.json are written\n")


def test_whatever_is_missing_is_said_before_anything_runs(prepared, segmenter, tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    (root / "voc_20").symlink_to(prepared("voc_20")[0] / "voc_20")
    wrong = {
        "does not exist": configured(root, "voc_20", "pascal_context_459"),
        "there is no benchmark 'ade'": configured(root, "voc_20", "ade"),
        "needs a folder": configured("", "voc_20"),
    }
    for message, config in wrong.items():
        with pytest.raises(UserError, match=message):
            evaluate_benchmarks(config, out, zero_shot=True)
    assert not segmenter.batches
    assert not out.exists()


def test_the_worst_and_best_pictures_are_shown(prepared, segmenter, tmp_path):
    root, _ = prepared("voc_20b")
    config = dataclasses.replace(configured(root, "voc_20b"), report_images=4)
    score(config, tmp_path)
    text = (tmp_path / "zero_shot" / "voc_20b" / "report.md").read_text()
    sections = {part.split("\n")[0]: part for part in text.split("## ")}

    def percents(title):
        return [float(line.split(": ")[1].split(" ")[0]) for line in sections[title].splitlines() if " %" in line]

    first, worst, best = (percents(title) for title in ("Pictures", "Worst pictures", "Best pictures"))
    assert (len(first), len(worst), len(best)) == (4, 2, 2)
    assert worst == sorted(worst)
    assert best == sorted(best, reverse=True)
    assert max(worst) <= min(best)
    assert len(list((tmp_path / "zero_shot" / "voc_20b" / "pictures").iterdir())) == 8
