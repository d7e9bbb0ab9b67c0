"""Score a model on a data set."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from dinov3seg_jax import weights
from dinov3seg_jax.config import Config
from dinov3seg_jax.data.datasets import Dataset, class_names, open_dataset
from dinov3seg_jax.evaluation.areas import area_scores
from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores
from dinov3seg_jax.evaluation.report import picture_row, write_report
from dinov3seg_jax.inference.linear import read_probe
from dinov3seg_jax.inference.segmenter import of_run
from dinov3seg_jax.inference.zero_shot import SECTION, ZeroShotSegmenter, describe_zero_shot, read_towers
from dinov3seg_jax.training.checkpoint import load_parameters, read_progress

BATCH_SIZE = 8


def evaluate(config: Config, checkpoint: Path, zero_shot: bool = False) -> dict[str, Any]:
    """Segment every image of `config.data.eval`, write `metrics.json` and `report.md` to `report_folder`.

    Args:
        config: says what to score on and how; the model is the checkpoint's.
        checkpoint: the folder of a run; of converted dinov3.txt weights, which are scored as with `zero_shot`; or of a
            converted linear head, whose converted backbone is `config.init_from` and whose model is `config.model`.
        zero_shot: score dinov3.txt alone, untrained, by the recipe of `config.zero_shot`.

    Returns:
        The scores, in percent; see `evaluation.confusion.scores`, and `evaluation.areas.area_scores` for a linear head.

    Raises:
        UserError: the checkpoint or an image cannot be read. No image is skipped: that would change the score.
    """
    dataset = open_dataset(config.data.eval)
    way = way_to_score(checkpoint, zero_shot)
    if way == "linear":
        trained, parameters = config, read_probe(config.model, config.init_from, checkpoint)
    else:
        trained, parameters = read_towers(checkpoint) if way == "zero_shot" else load_parameters(checkpoint)
    config = dataclasses.replace(config, model=trained.model)
    linear = way != "zero_shot" and config.model.linear.classes > 0
    segmenter = ZeroShotSegmenter(config, parameters) if way == "zero_shot" else of_run(config, parameters)
    names = segmenter.check_names(dataset.classes)
    seen = seen_classes(dataset, trained) if way == "run" and not linear else None
    if way == "zero_shot":
        print(describe_zero_shot(config.zero_shot))
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
    summary = area_scores(confusion.counts) if linear else scores(confusion.counts, seen)
    extra: dict[str, Any] = {
        "images": count,
        "eval_seconds": time.perf_counter() - started,
        "setup_seconds": _setup_seconds(),
    }
    if way == "zero_shot":
        # The notebook's own score: a class that is predicted but absent from the whole truth counts 0.
        extra["notebook_miou"] = area_scores(confusion.counts)["miou"]
        extra |= {"inference": describe_zero_shot(config.zero_shot), SECTION: config.zero_shot}
    else:
        extra["inference"] = config.inference
    if way == "run":
        extra["train_seconds"] = read_progress(checkpoint)["train_seconds"]
    write_report(report_folder(checkpoint, zero_shot), summary, names, seen, pictures, extra)
    return summary


def way_to_score(checkpoint: Path, zero_shot: bool) -> Literal["run", "zero_shot", "linear"]:
    """What a folder is scored as."""
    if zero_shot or not weights.is_converted(checkpoint):
        return "zero_shot" if zero_shot else "run"
    return "linear" if weights.read_manifest(checkpoint).kind == "linear" else "zero_shot"


def report_folder(checkpoint: Path, zero_shot: bool) -> Path:
    """Where the scores are written: to the run's folder, or to one inside, named by what it was scored as."""
    way = way_to_score(checkpoint, zero_shot)
    return checkpoint if way == "run" else checkpoint / way


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
