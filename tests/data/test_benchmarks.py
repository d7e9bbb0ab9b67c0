"""The table of benchmarks agrees with the vocabularies, the label maps and the method's own page."""

import json
from importlib import resources
from pathlib import Path

import pytest

from dinov3seg_jax.data.benchmark_sets import BENCHMARKS, FIVE, PUBLISHED
from dinov3seg_jax.data.datasets import DATASETS
from dinov3seg_jax.data.label_maps import original_ids

LABEL_MAPS = json.loads((resources.files("dinov3seg_jax.data") / "label_maps.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_row_agrees_with_the_lists_it_names(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.dataset == name
    assert name in DATASETS
    assert len(benchmark.classes) == len(original_ids(benchmark.label_map)) == benchmark.class_count
    rule = LABEL_MAPS[benchmark.label_map]
    assert benchmark.ignore == rule.get("ignore_out", rule.get("registered_ignore"))
    assert benchmark.ignore >= benchmark.class_count
    assert benchmark.ignore < 2 ** benchmark.label_bits[-1]
    assert "eval" in benchmark.splits
    assert benchmark.protocol


def test_only_the_background_of_20b_is_many_names():
    assert {name for name, benchmark in BENCHMARKS.items() if benchmark.merge_from is not None} == {"voc_20b"}
    assert BENCHMARKS["voc_20b"].classes[:20] == BENCHMARKS["voc_20"].names
    assert BENCHMARKS["voc_20b"].classes[20:] == ("background",)
    assert len(BENCHMARKS["voc_20b"].names) == 59


def test_the_numbers_of_images_in_use():
    counts = {name: benchmark.splits["eval"].files for name, benchmark in BENCHMARKS.items()}
    assert counts == {
        "coco_stuff_171": (5000,),
        "ade20k_150": (2000,),
        "ade20k_847": (2000,),
        "pascal_context_59": (5104, 5105),
        "pascal_context_459": (5104,),
        "voc_20": (1449,),
        "voc_20b": (1449,),
    }


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.method)
def test_published_scores_are_those_of_the_methods_page(row):
    assert [float(cell) for cell in _table_row(row.method)] == [*(row.miou[name] for name in FIVE), row.mean]
    assert sum(row.miou[name] for name in FIVE) / 5 == pytest.approx(row.mean, abs=0.0051)


def test_the_first_row_is_the_papers():
    assert [BENCHMARKS[name].paper_miou for name in FIVE] == [PUBLISHED[0].miou[name] for name in FIVE]
    assert _table_row("") == [*(BENCHMARKS[name].column for name in FIVE), "mean"]


def _table_row(first: str) -> list[str]:
    page = Path("docs/method.md").read_text(encoding="utf-8")
    lines = page[page.index("## 9.") :].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (row,) = [cells for cells in rows if cells[0] == first]
    return row[1:]
