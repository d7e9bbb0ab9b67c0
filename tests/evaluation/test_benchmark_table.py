"""The table of benchmarks: columns in the paper's order, what is published, the difference, and no false comparison."""

import json
import re

import pytest

from dinov3seg_jax.data.benchmark_sets import BENCHMARKS, FIVE, PUBLISHED
from dinov3seg_jax.evaluation.benchmark_table import write_table

OURS = dict(zip(FIVE, (10.0, 20.0, 30.0, 40.0, 50.5), strict=True))


def results(names, **images):
    return {
        name: {"miou": OURS.get(name, 60.0), "images": images.get(name, BENCHMARKS[name].splits["eval"].files[0])}
        for name in names
    }


def read_table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return head[1:], {row[0]: row[1:] for row in rows}


def test_all_five_with_their_mean_and_the_difference(tmp_path):
    text = write_table(tmp_path / "new", results(reversed(FIVE)), "runs/x", "A recipe.")
    assert (tmp_path / "new" / "benchmarks.md").read_text() == text
    assert "runs/x, mIoU in percent as in detectron2's evaluator. A recipe." in text
    head, rows = read_table(text)
    assert head == ["A-847", "PC-459", "A-150", "PC-59", "PAS-20", "mean"]
    assert rows["ours"] == ["10.00", "20.00", "30.00", "40.00", "50.50", "30.10"]
    assert rows["dinov3.seg"] == ["20.09", "27.80", "42.19", "64.27", "97.86", "50.44"]
    assert rows["ours − dinov3.seg"] == ["-10.09", "-7.80", "-12.19", "-24.27", "-47.36", "-20.34"]
    assert {row.method for row in PUBLISHED} < rows.keys()
    content = json.loads((tmp_path / "new" / "benchmarks.json").read_text())
    assert content["ours"]["mean"] == pytest.approx(30.1)
    assert content["recipe"] == "A recipe."
    for method, row in content["published"].items():
        for name, value in row.items():
            if name in content["ours"]:
                assert content["differences"][method][name] == pytest.approx(content["ours"][name] - value)
    assert "**" not in text


def test_a_part_of_them_has_no_mean():
    head, rows = read_table(write_table(None, results(["voc_20b", "voc_20", "ade20k_150"]), "x", "r"))
    assert head == ["A-150", "PAS-20", "PAS-20b"]
    assert rows["ours"] == ["30.00", "50.50", "60.00"]
    assert rows["dinov3.seg"] == ["42.19", "97.86", "–"]
    assert rows["ours − dinov3.seg"][2] == "–"


def test_another_number_of_images_than_the_published_scores_are_of_is_said():
    text = write_table(None, results(["ade20k_150", "voc_20"], ade20k_150=20), "x", "r")
    assert re.search(r"A-150: .*20 images \(\*\*the published scores are of 2,000\*\*\)", text)
    assert "1,449 images;" in text


def test_a_benchmark_without_a_score_is_valid_json(tmp_path):
    write_table(tmp_path, {"voc_20": {"miou": float("nan"), "images": 1}}, "x", "r")
    content = json.loads((tmp_path / "benchmarks.json").read_text(), parse_constant=pytest.fail)
    assert content["ours"]["voc_20"] is None
