"""What an evaluation leaves behind: `metrics.json` and `classes.csv` for programs, `report.md` for people."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from dinov3seg_jax import visualize
from dinov3seg_jax.evaluation.confusion_picture import confusion_picture
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.inference.recipes import describe_inference

PER_CLASS = ("iou", "accuracy", "pixels")
HEADLINES = {
    "miou": "mIoU",
    "seen_miou": "mIoU, classes seen in training",
    "unseen_miou": "mIoU, classes never seen",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "fwiou": "frequency-weighted IoU",
    "boundary_iou": "mean boundary IoU",
    "miou_small": "mIoU of regions below 32² pixels",
    "miou_medium": "mIoU of regions from 32² to below 96² pixels",
    "miou_large": "mIoU of larger regions",
    "miou_1_to_3_classes": "mIoU of pictures with up to 3 classes",
    "miou_4_to_7_classes": "mIoU of pictures with 4 to 7 classes",
    "miou_8_and_more_classes": "mIoU of pictures with more classes",
    "calibration_error": "expected calibration error of the confidence",
    "torchmetrics_miou": "mIoU as torchmetrics counts it",
    "detectron2_miou": "mIoU as detectron2 counts it",
    "notebook_miou": "mIoU as the model's published notebook counts it",
    "dice": "mean Dice",
    "fscore": "mean F-score",
    "precision": "mean precision",
}
FACTS = {
    "images": "pictures",
    "setup_seconds": "set-up of the environment, seconds",
    "train_seconds": "training, seconds",
    "eval_seconds": "evaluation, seconds",
}


def write_report(
    folder: Path,
    scores: Mapping[str, Any],
    classes: Sequence[str],
    seen: Sequence[bool] | None = None,
    pictures: Mapping[str, Iterable[tuple[str, UInt8[np.ndarray, "h w 3"]]]] | None = None,
    extra: Mapping[str, Any] | None = None,
    counts: Int[np.ndarray, "c c+1"] | None = None,
) -> None:
    """Write `metrics.json`, `classes.csv`, `report.md` and the pictures; each file appears whole or not at all.

    Args:
        folder: created where it does not exist.
        scores: what `confusion.scores` returns.
        classes: the C names that were scored, in the order of `scores["iou"]`.
        seen: for each class whether it was trained on, where that is known.
        pictures: by the title of their section, with a caption each; they are written to `folder/pictures`.
        extra: further flat entries of `metrics.json`, such as `images`, `train_seconds`, `setup_seconds` and
            `eval_seconds`. `inference` is the recipe: an `InferenceConfig`, its fields as a mapping, or a sentence.
        counts: `ConfusionMatrix.counts`, for `confusion.png` and two columns of `classes.csv`.

    Raises:
        ValueError: the lengths of `classes`, `seen` and the scores differ, or `extra` would overwrite a score.
    """
    extra = dict(extra or {})
    if not len(classes) == len(scores["iou"]) == len(classes if seen is None else seen):
        raise ValueError(f"{len(classes)} class names do not fit {len(scores['iou'])} scores or the list of seen ones")
    if taken := extra.keys() & {*scores, "classes"}:
        raise ValueError(f"extra would overwrite {sorted(taken)}")
    rows = [
        {"name": name, "seen": None if seen is None else bool(seen[index])}
        | {key: scores[key][index] for key in PER_CLASS}
        for index, name in enumerate(classes)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    sections = _write_pictures(folder, pictures or {})
    if counts is not None:
        _write_picture(folder / "confusion.png", confusion_picture(counts, classes))
        sections["Confusion"] = [("of the classes that are confused most", "confusion.png")]
    summary = {key: value for key, value in scores.items() if key not in PER_CLASS} | extra
    metrics = json.dumps(_plain(summary | {"classes": rows}), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "classes.csv", _table(rows, counts).encode("utf-8", "replace"))
    write_whole(folder / "metrics.json", f"{metrics}\n".encode())
    write_whole(folder / "report.md", _markdown(summary, rows, sections).encode())


def picture_row(
    image: UInt8[np.ndarray, "h w 3"],
    truth: Int[np.ndarray, "h w"],
    prediction: Int[np.ndarray, "h w"],
    classes: Sequence[str],
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Image, truth and prediction side by side, over one legend.

    Args:
        image: 0 to 255.
        truth: class indices, -1 for ignored pixels.
        prediction: class indices.
        classes: the names that the indices mean; a class has one colour in both maps, and only those that occur in
            either are in the legend.
    """
    colors = visualize.palette(len(classes))
    occurring = [index for index in np.union1d(truth, prediction) if index >= 0]
    maps = [visualize.overlay(image, labels, colors, alpha=0.65) for labels in (truth, prediction)]
    row = visualize.side_by_side([image, *maps], ["image", "truth", "prediction"])
    return visualize.with_legend(row, [classes[index] for index in occurring], colors[occurring])


def _markdown(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], sections: Mapping[str, Sequence[tuple[str, str]]]
) -> str:
    lines = ["# Evaluation", "", "| score | percent |", "| --- | ---: |"]
    lines += [f"| {title} | {_number(summary[key])} |" for key, title in HEADLINES.items() if key in summary]
    facts = [f"| {title} | {_number(summary[key])} |" for key, title in FACTS.items() if summary.get(key) is not None]
    if facts:
        lines += ["", "| run | |", "| --- | ---: |", *facts]
    if summary.get("inference"):
        lines += ["", "## Inference", "", describe_inference(summary["inference"])]
    for title, links in sections.items():
        lines += ["", f"## {title}"]
        for caption, link in links:
            lines += ["", f"{_cell(caption)}", "", f"![{_alternative(title)}]({link})"]
    lines += ["", "## Classes", "", "Classes that do not occur in the truth have no score and count in no mean.", ""]
    lines += ["| class | training | IoU | accuracy | pixels |", "| --- | --- | ---: | ---: | ---: |"]
    lines += [
        f"| {_cell(row['name'])} | {_SEEN[row['seen']]} | {_number(row['iou'])} | {_number(row['accuracy'])} "
        f"| {row['pixels']} |"
        for row in sorted(rows, key=_best_first)
    ]
    return "\n".join(lines) + "\n"


_SEEN = {True: "seen", False: "unseen", None: "–"}


def _best_first(row: Mapping[str, Any]) -> tuple[bool, float]:
    absent = math.isnan(row["iou"])
    return absent, 0.0 if absent else -row["iou"]


def _number(value: float) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _alternative(title: str) -> str:
    return "rows: truth, columns: prediction" if title == "Confusion" else "image, truth and prediction"


def _write_pictures(
    folder: Path, pictures: Mapping[str, Iterable[tuple[str, np.ndarray]]]
) -> dict[str, list[tuple[str, str]]]:
    """Write one picture after the other; captions and links by section."""
    sections: dict[str, list[tuple[str, str]]] = {title: [] for title in pictures}
    number = 0
    for title, captioned in pictures.items():
        for caption, picture in captioned:
            link = f"pictures/{number:03d}.png"
            (folder / "pictures").mkdir(exist_ok=True)
            _write_picture(folder / link, picture)
            sections[title].append((caption, link))
            number += 1
    return sections


def _write_picture(path: Path, picture: np.ndarray) -> None:
    write_whole(path, visualize.encode(Image.fromarray(picture)))


def _table(rows: Sequence[Mapping[str, Any]], counts: np.ndarray | None) -> str:
    """A line for each class, in the order of their indices; what does not exist is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "name", "training", "iou", "accuracy", "pixels", "predicted_pixels", "correct_pixels"])
    for index, row in enumerate(rows):
        values = [row[key] if math.isfinite(row[key]) else "" for key in PER_CLASS]
        counted = ["", ""] if counts is None else [counts[index, :-1].sum(), counts[index, index]]
        writer.writerow([index, row["name"], _SEEN[row["seen"]].strip("–"), *values, *counted])
    return text.getvalue()


def _plain(value: Any) -> Any:
    """The same value in types that JSON knows, with None for what is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
