"""One table of all benchmarks: ours, what is published, and the difference."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinov3seg_jax.data.benchmark_sets import BENCHMARKS, FIVE, PUBLISHED
from dinov3seg_jax.files import write_whole

MEAN = "mean"


def write_table(folder: Path | None, results: Mapping[str, Mapping[str, Any]], model: str, recipe: str) -> str:
    """Write `benchmarks.md` and `benchmarks.json`.

    Args:
        folder: None: nothing is written.
        results: for each benchmark its scores in percent, and how many "images" they are of.
        model: the name of what was scored.
        recipe: how images were segmented, in words.

    Returns:
        The content of `benchmarks.md`.
    """
    names = [name for name in FIVE if name in results] + [name for name in results if name not in FIVE]
    ours = _with_mean({name: float(results[name]["miou"]) for name in names})
    published = {row.method: dict(row.miou) | ({MEAN: row.mean} if row.mean is not None else {}) for row in PUBLISHED}
    differences = {
        method: {name: ours[name] - value for name, value in row.items() if name in ours}
        for method, row in published.items()
    }
    columns = [*names, MEAN] if MEAN in ours else names
    first = PUBLISHED[0].method
    rows: dict[str, Mapping[str, float]] = {"ours": ours, **published, f"ours − {first}": differences[first]}
    lines = ["# Benchmarks", "", f"{model}, mIoU in percent as in detectron2's evaluator. {recipe}", ""]
    lines += [_row(["", *(_title(name) for name in columns)]), _row(["---", *["---:"] * len(columns)])]
    lines += [
        _row([title, *(_number(row.get(column, math.nan), signed="−" in title) for column in columns)])
        for title, row in rows.items()
    ]
    lines += ["", *(_note(name, results[name]) for name in names)]
    text = "\n".join(lines) + "\n"
    if folder is not None:
        content = {
            "model": model,
            "recipe": recipe,
            "ours": ours,
            "published": published,
            "differences": differences,
            "images": {name: int(results[name]["images"]) for name in names},
        }
        folder.mkdir(parents=True, exist_ok=True)
        encoded = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(folder / "benchmarks.json", f"{encoded}\n".encode())
        write_whole(folder / "benchmarks.md", text.encode())
    return text


def _with_mean(miou: dict[str, float]) -> dict[str, float]:
    """The mean of the paper's five, where all of them were scored."""
    return miou | ({MEAN: sum(miou[name] for name in FIVE) / len(FIVE)} if miou.keys() >= set(FIVE) else {})


def _note(name: str, result: Mapping[str, Any]) -> str:
    benchmark = BENCHMARKS[name]
    files = benchmark.splits["eval"].files
    images = f"{result['images']:,} images"
    if result["images"] not in files:
        images += f" (**the published scores are of {files[0]:,}**)"
    said = f"; {benchmark.protocol}" if benchmark.protocol else ""
    return f"- {benchmark.column}: [{benchmark.title}]({name}/report.md), {images}{said}."


def _title(column: str) -> str:
    return column if column == MEAN else BENCHMARKS[column].column


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float, signed: bool) -> str:
    return format(value, "+.2f" if signed else ".2f") if math.isfinite(value) else "–"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
