"""Score a trained model on a data set."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dinov3seg_jax.config import Config
from dinov3seg_jax.data.datasets import Dataset, class_names, open_dataset
from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores
from dinov3seg_jax.evaluation.report import picture_row, write_report
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.training.checkpoint import load_parameters, read_progress

BATCH_SIZE = 8


def evaluate(config: Config, checkpoint: Path) -> dict[str, Any]:
    """Segment every image of `config.data.eval`, write `metrics.json` and `report.md` beside the checkpoint.

    Args:
        config: says what to score on and how; the model is the checkpoint's.
        checkpoint: the folder of a run.

    Returns:
        The scores, in percent; see `evaluation.confusion.scores`.

    Raises:
        UserError: the checkpoint or an image cannot be read. No image is skipped: that would change the score.
    """
    trained, parameters = load_parameters(checkpoint)
    dataset = open_dataset(config.data.eval)
    segmenter = Segmenter(dataclasses.replace(config, model=trained.model), parameters)
    names = segmenter.check_names(dataset.classes)
    seen = seen_classes(dataset, trained)
    marked = names if seen is None else [name if known else f"{name}*" for name, known in zip(names, seen, strict=True)]
    started = time.perf_counter()
    confusion = ConfusionMatrix(len(names))
    pictures: list[np.ndarray] = []
    count = len(dataset.source)
    with tqdm(total=count, unit="image", dynamic_ncols=True) as bar:
        for start in range(0, count, BATCH_SIZE):
            examples = [dataset.source[index] for index in range(start, min(start + BATCH_SIZE, count))]
            results = segmenter.segment_arrays([example["image"] for example in examples], names, BATCH_SIZE)
            for example, result in zip(examples, results, strict=True):
                confusion.add(result.labels, example["label"])
                if len(pictures) < config.report_images:
                    pictures.append(picture_row(example["image"], example["label"], result.labels, marked))
            bar.update(len(examples))
    summary = scores(confusion.counts, seen)
    extra = {
        "images": count,
        "train_seconds": read_progress(checkpoint)["train_seconds"],
        "eval_seconds": time.perf_counter() - started,
        "setup_seconds": _setup_seconds(),
        "inference": config.inference,
    }
    write_report(checkpoint, summary, names, seen, pictures, extra)
    return summary


def seen_classes(dataset: Dataset, trained: Config) -> tuple[bool, ...] | None:
    """For each class whether the model was trained on it; None where every one was."""
    seen = dataset.seen
    if seen is None:
        trained_on = set(class_names(trained.data.train))
        seen = tuple(name in trained_on for name in dataset.classes)
    return None if all(seen) else seen


def _setup_seconds() -> float | None:
    """What `make setup` noted beside this interpreter, if it made the environment."""
    note = Path(sys.prefix) / "setup_seconds"
    return float(note.read_text(encoding="utf-8")) if note.is_file() else None
