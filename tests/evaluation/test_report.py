"""What a report holds: valid JSON, the right rows in the right order, pictures that exist, whole files only."""

import csv
import dataclasses
import json
import re
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax import files
from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.evaluation import report
from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores
from dinov3seg_jax.evaluation.report import picture_row, write_report
from dinov3seg_jax.inference.recipes import describe_inference

CLASSES = ["sky", "tree | bush", "sea", "boat"]
SEEN = [True, True, False, True]


def some_counts():
    matrix = ConfusionMatrix(len(CLASSES))
    matrix.add(np.array([[0, 0, 2, 2, 1]]), np.array([[0, 1, 2, 2, -1]]))  # boat is absent, tree is missed
    return matrix.counts


def some_scores(seen=SEEN):
    return scores(some_counts(), seen)


def table_of_classes(folder):
    lines = (folder / "report.md").read_text().split("## Classes")[1].splitlines()
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")][2:]


def test_metrics_are_flat_and_valid_json(tmp_path):
    extra = {"images": np.int64(1), "train_seconds": 2.5, "inference": dataclasses.asdict(InferenceConfig())}
    write_report(tmp_path / "new" / "run", some_scores(), CLASSES, SEEN, extra=extra)
    metrics = json.loads((tmp_path / "new" / "run" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["miou"] == pytest.approx(50.0)
    assert metrics["unseen_miou"] == 100.0
    assert (metrics["images"], metrics["train_seconds"]) == (1, 2.5)
    assert metrics["inference"]["window"] == 384
    assert metrics["classes"][1] == {"name": "tree | bush", "seen": True, "iou": 0.0, "accuracy": 0.0, "pixels": 1}
    assert metrics["classes"][3] == {"name": "boat", "seen": True, "iou": None, "accuracy": None, "pixels": 0}
    assert "iou" not in metrics


def test_classes_are_sorted_by_iou_with_absent_ones_last(tmp_path):
    write_report(tmp_path, some_scores(), CLASSES, SEEN)
    rows = [[cell.strip() for cell in row] for row in table_of_classes(tmp_path)]
    assert [row[0] for row in rows] == ["sea", "sky", "tree \\| bush", "boat"]
    assert [row[1] for row in rows] == ["unseen", "seen", "seen", "seen"]
    assert rows[0][2] == "100.00"
    assert rows[3][2] == "–"


def test_without_seen_nothing_is_called_unseen(tmp_path):
    write_report(tmp_path, some_scores(seen=None), CLASSES)
    assert "unseen" not in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "metrics.json").read_text())["classes"][0]["seen"] is None


def test_pictures_are_embedded_by_section_with_their_captions(tmp_path):
    grey, white = np.full((6, 8, 3), 7, np.uint8), np.full((5, 4, 3), 255, np.uint8)
    write_report(
        tmp_path, some_scores(), CLASSES, SEEN, {"First": [("one | a", grey)], "Worst": iter([("b: 3.0 %", white)])}
    )
    text = (tmp_path / "report.md").read_text()
    found = re.findall(r"## (\w+)\n\n(.*)\n\n!\[[^]]*\]\(([^)]+)\)", text)
    assert found == [("First", "one \\| a", "pictures/000.png"), ("Worst", "b: 3.0 %", "pictures/001.png")]
    for (*_, link), picture in zip(found, (grey, white), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / link)), picture)


def test_the_table_of_classes_for_programs(tmp_path):
    write_report(tmp_path, some_scores(), CLASSES, SEEN, counts=some_counts())
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == CLASSES
    assert [row["training"] for row in rows] == ["seen", "seen", "unseen", "seen"]
    assert [row["iou"] for row in rows] == ["50.0", "0.0", "100.0", ""]
    assert [row["pixels"] for row in rows] == ["1", "1", "2", "0"]
    assert [row["predicted_pixels"] for row in rows] == ["2", "0", "2", "0"]
    assert [row["correct_pixels"] for row in rows] == ["1", "0", "2", "0"]
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.width > 100
    assert "(confusion.png)" in (tmp_path / "report.md").read_text()


def test_an_interruption_leaves_the_old_report(tmp_path, monkeypatch):
    write_report(tmp_path, some_scores(), CLASSES, SEEN, extra={"images": 1})
    before = (tmp_path / "metrics.json").read_bytes()

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, some_scores(), CLASSES, SEEN, extra={"images": 2})
    assert (tmp_path / "metrics.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.csv", "metrics.json", "report.md"]


def test_names_and_extras_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 class names"):
        write_report(tmp_path, some_scores(), CLASSES[:3])
    with pytest.raises(ValueError, match="miou"):
        write_report(tmp_path, some_scores(), CLASSES, extra={"miou": 100.0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "windows of 384 pixels every 128"),
        ({"fusion": "logits"}, "each is decoded"),
        ({"mode": "whole", "resize": "short_side"}, "seen as a whole"),
        ({"resize": "native", "global_size": 448}, "at 448 pixels"),
        ({"resize": "tiled"}, "averaged with those of the whole tile"),
        ({"resize": "tiled", "tile_scale": 0.25}, "Each picture at 0.25 of its height and width is cut into"),
        ({"templates": ("a {}", "the {}")}, '"a {}", "the {}"'),
    ],
)
def test_the_recipe_in_words(changes, said):
    options = dataclasses.replace(InferenceConfig(), **changes)
    words = describe_inference(options)
    assert said in words
    assert describe_inference(words) == words
    assert describe_inference(json.loads(json.dumps(dataclasses.asdict(options)))) == words


@pytest.mark.parametrize("field", ["mode", "fusion", "resize"])
def test_every_way_has_words(field):
    for choice in get_args(get_type_hints(InferenceConfig)[field]):
        describe_inference(dataclasses.replace(InferenceConfig(), **{field: choice}))


def test_a_class_has_one_colour_and_only_occurring_classes_are_named(monkeypatch):
    named = []
    with_legend = report.visualize.with_legend

    def listen(picture, names, colors):
        named.append((list(names), np.asarray(colors).tolist()))
        return with_legend(picture, names, colors)

    monkeypatch.setattr(report.visualize, "with_legend", listen)
    image = np.full((20, 30, 3), 128, np.uint8)
    truth = np.full((20, 30), -1)
    truth[:, :10] = 1
    row = picture_row(image, truth, np.full((20, 30), 2), CLASSES)
    swapped = picture_row(image, np.full((20, 30), 2), np.where(truth == 1, 1, 2), CLASSES)
    assert row.dtype == np.uint8
    assert row.ndim == 3
    assert row.shape[1] >= 90
    palette = report.visualize.palette(len(CLASSES))
    assert named[0] == (["tree | bush", "sea"], np.asarray(palette)[[1, 2]].tolist())
    assert named[1] == named[0]
    assert swapped.shape == row.shape
