"""Score a model on one data set, or on several benchmarks."""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from dinov3seg_jax.config import Config, DatasetConfig, ModelConfig
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.census import check_masks
from dinov3seg_jax.data.datasets import Dataset, check_classes, open_dataset
from dinov3seg_jax.data.held_out import open_evaluation, scored_on
from dinov3seg_jax.data.mixed import trained_names
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import hosts
from dinov3seg_jax.evaluation.benchmark_table import write_table
from dinov3seg_jax.evaluation.confusion import scores
from dinov3seg_jax.evaluation.count import count_pixels, segment_examples
from dinov3seg_jax.evaluation.dinov3_scores import area_scores
from dinov3seg_jax.evaluation.measures import Measures
from dinov3seg_jax.evaluation.progress import Progress, identify, remove_progress
from dinov3seg_jax.evaluation.report import picture_row, write_report
from dinov3seg_jax.inference.base import BaseSegmenter
from dinov3seg_jax.inference.load import OpenModel, open_model, section_of, way_of, with_own_recipe
from dinov3seg_jax.inference.recipes import describe_zero_shot
from dinov3seg_jax.places import check_writable
from dinov3seg_jax.processes import check_once, is_first, say
from dinov3seg_jax.store.folder import ModelFolder, open_folder
from dinov3seg_jax.store.run import NEWEST
from dinov3seg_jax.text.prompts import load_templates


class Model(NamedTuple):
    """A model ready to be scored."""

    segmenter: BaseSegmenter
    config: Config  # of the evaluation, with the model's own `model`
    opened: OpenModel

    @property
    def linear(self) -> bool:
        """A linear head, converted or of a run: it is scored as the DINOv3 repository does."""
        return self.opened.way != "zero_shot" and self.config.model.linear.classes > 0


def evaluate(
    config: Config,
    checkpoint: str | Path | ModelFolder,
    zero_shot: bool = False,
    typed: Sequence[str] = (),
    step: str = NEWEST,
) -> dict[str, Any]:
    """Segment every image of `config.data.eval`, and write the scores and what goes with them to `report_folder`.

    A call that was interrupted is continued by the next one. The devices of a process share its batches out, and
    processes share the images out; the first process writes.

    Args:
        config: says what to score on (`data.held_out`) and how; the model is the checkpoint's.
        checkpoint: the folder of a run; of converted dinov3.txt weights, which are scored as with `zero_shot`; or of a
            converted linear head, whose converted backbone is `config.init_from` and whose model is `config.model`.
        zero_shot: score dinov3.txt alone, untrained, by the recipe of `config.zero_shot`.
        typed: overrides, like "inference.stride=128", that count more than the recipe of a converted folder even where
            they say a default; what else of `config` differs from the defaults does too.
        step: of a run: "newest", "best" (by what was scored while it trained), or a number.

    Returns:
        The scores, in percent; see `confusion.scores`, and `dinov3_scores.area_scores` for a linear head.

    Raises:
        UserError: the checkpoint or an image cannot be read. No image is skipped: that would change the score.
    """
    checkpoint = _at(checkpoint, step)
    config = with_own_recipe(config, checkpoint, zero_shot, typed)
    dataset = open_evaluation(config.data)
    _check(config, checkpoint, zero_shot, [dataset])
    model = open_to_score(config, checkpoint, zero_shot)
    folder = report_folder(checkpoint, zero_shot)
    summary = _score(model, scored_on(config.data), dataset, folder)
    _remove(folder)
    return summary


def evaluate_benchmarks(
    config: Config,
    checkpoint: str | Path | ModelFolder,
    zero_shot: bool = False,
    typed: Sequence[str] = (),
    step: str = NEWEST,
) -> str:
    """Score a model on each of `config.benchmarks`, and compare it with what is published.

    Each benchmark has its own folder in `report_folder`, which gets `benchmarks.md` and `benchmarks.json`. All data
    sets are opened before the first is scored. A call that was interrupted is continued by the next one, which does
    not repeat the benchmarks that were complete.

    Args:
        config, checkpoint, zero_shot, typed, step: as for `evaluate`; `config.data.eval.root` holds the data sets.

    Returns:
        The table.

    Raises:
        UserError: as for `evaluate`; or a name is no benchmark's.
    """
    checkpoint = _at(checkpoint, step)
    if unknown := [name for name in config.benchmarks if name not in BENCHMARKS]:
        raise UserError(f"there is no benchmark '{unknown[0]}'; there are {', '.join(BENCHMARKS)}.")
    config = with_own_recipe(config, checkpoint, zero_shot, typed)
    wanted = {
        name: dataclasses.replace(config.data.eval, name=name, split="eval")
        for name in dict.fromkeys(config.benchmarks)
    }
    datasets = {name: open_dataset(of_data) for name, of_data in wanted.items()}
    _check(config, checkpoint, zero_shot, list(datasets.values()))
    model = open_to_score(config, checkpoint, zero_shot)
    for dataset in datasets.values():
        model.segmenter.check_names(dataset.classes)
    folder = report_folder(checkpoint, zero_shot)
    results = {}
    for name, dataset in datasets.items():
        if is_first():
            print(f"{BENCHMARKS[name].title}: {len(dataset.source)} images, {len(dataset.classes)} names", flush=True)
        results[name] = _score(model, wanted[name], dataset, folder / name) | {"images": len(dataset.source)}
    table = write_table(folder if is_first() else None, results, str(checkpoint), model.segmenter.describe())
    for name in results:
        _remove(folder / name)
    return table


def _at(checkpoint: str | Path | ModelFolder, step: str) -> str | Path | ModelFolder:
    """The folder as it was named, or of another step than the newest."""
    return checkpoint if step == NEWEST else open_folder(checkpoint, step)


def _check(config: Config, checkpoint: str | Path | ModelFolder, zero_shot: bool, datasets: Sequence[Dataset]) -> None:
    """Refuse names and masks that cannot be scored, and a place for the scores, before weights are read.

    Raises:
        UserError: as for `places.check_writable`, `text.prompts.check_names` and `data.census.check_masks`.
    """
    check_once(functools.partial(check_writable, report_folder(checkpoint, zero_shot)))
    asked = _prompts(config, checkpoint, zero_shot)
    for dataset in datasets:
        if asked is not None:
            check_classes(dataset.classes, dataset.names_from, *asked)
        check_once(functools.partial(check_masks, dataset))


def _prompts(
    config: Config, checkpoint: str | Path | ModelFolder, zero_shot: bool
) -> tuple[tuple[str, ...], ModelConfig] | None:
    """Templates, and the model that is asked; None for a model without text, and where there is no model."""
    try:
        folder = open_folder(checkpoint)
        way, model = way_of(folder, zero_shot), folder.config.model
    except UserError:  # is said when the model is read
        return None
    if way == "zero_shot":
        return load_templates(config.zero_shot.templates), model
    return None if way == "linear" or model.linear.classes else (config.inference.templates, model)


def open_to_score(config: Config, checkpoint: str | Path | ModelFolder, zero_shot: bool) -> Model:
    """Load what `evaluate` scores, on all devices of this process.

    Raises:
        UserError: the checkpoint cannot be read, or does not fit the config.
    """
    opened = open_model(checkpoint, zero_shot, around=config)
    asked = dataclasses.replace(config, model=opened.config.model)
    if opened.way == "zero_shot":
        say(describe_zero_shot(asked.zero_shot, asked.model.towers))
    return Model(opened.segmenter(asked, jax.local_devices()), asked, opened)


def report_folder(checkpoint: str | Path | ModelFolder, zero_shot: bool, step: str = NEWEST) -> Path:
    """Where the scores are written: to the run's folder, or to one inside, named by what it was scored as."""
    folder = open_folder(checkpoint, step)
    way = way_of(folder, zero_shot)
    results = folder.results if folder.kind == "run" else folder.path
    return results if way == "run" else results / way


def seen_classes(dataset: Dataset, trained: Config) -> tuple[bool, ...] | None:
    """For each class whether the model was trained on it; None where every one was."""
    seen = dataset.seen
    if seen is None:
        trained_on = set(trained_names(trained.data))
        seen = tuple(name in trained_on for name in dataset.classes)
    return None if all(seen) else seen


def counted(dataset: Dataset, seen: tuple[bool, ...] | None) -> tuple[tuple[str, ...], tuple[bool, ...] | None]:
    """The classes that are counted, of which the last may stand for several of the data set; and which were seen."""
    merged = dataset.merge_from
    if merged is None:
        return dataset.classes, seen
    return (*dataset.classes[:merged], "background"), seen and (*seen[:merged], all(seen[merged:]))


def mark_unseen(classes: Sequence[str], seen: Sequence[bool] | None) -> Sequence[str]:
    """The names that legends show: with a star where the model was not trained on the class."""
    return classes if seen is None else [name + "*" * (not known) for name, known in zip(classes, seen, strict=True)]


def _score(model: Model, of_data: DatasetConfig, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Score one data set and write its report."""
    opened = model.opened
    model.segmenter.check_names(dataset.classes)
    names = dataset.classes  # as they were published, which reports keep
    seen = seen_classes(dataset, opened.config) if opened.folder.kind == "run" and not model.linear else None
    classes, seen = counted(dataset, seen)
    progress = count_pixels(
        model.segmenter, dataset, names, len(classes), folder, identify(*_decisive(model), of_data, dataset)
    )
    present, areas = scores(progress.counts, seen), area_scores(progress.counts)
    measures = Measures(len(classes), model.segmenter.confidence_kind)
    measures.restore(progress.measures)
    summary = (areas if model.linear else present) | measures.scores()
    seconds = {}
    if opened.way == "run" and opened.folder.kind == "run":  # of all processes: orbax wants them to read together
        seconds = {"train_seconds": opened.folder.progress()["train_seconds"]}
    if not is_first():
        return summary
    extra: dict[str, Any] = {
        "torchmetrics_miou": areas["miou"],
        "images": len(dataset.source),
        "eval_seconds": progress.seconds,
        "setup_seconds": _setup_seconds(),
    } | seconds
    if model.linear:
        extra["detectron2_miou"] = present["miou"]
    if opened.way == "zero_shot":
        # As both models' notebooks count: a class that is predicted but absent from the whole truth counts 0.
        extra["notebook_miou"] = areas["miou"]
        extra |= {"inference": model.segmenter.describe()} | model.segmenter.recipe
    elif opened.config.model.cafedino.layers:  # whose options alone do not say what it is
        extra |= {"inference": model.segmenter.describe()}
    else:
        extra |= model.segmenter.recipe
    pictures = _pictures(model, dataset, names, mark_unseen(classes, seen), progress)
    write_report(folder, summary, classes, seen, pictures, extra, progress.counts)
    return summary


def _pictures(
    model: Model, dataset: Dataset, names: Sequence[str], marked: Sequence[str], progress: Progress
) -> dict[str, Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]]:
    """The first images of a data set, and those that are segmented worst and best, by the title of their section.

    They are segmented again, so that no picture has to be kept for as long as it may turn out to be one of them.
    """
    amount = model.config.report_images
    ranked = np.flatnonzero(~np.isnan(progress.image_miou))
    ranked = ranked[np.argsort(progress.image_miou[ranked], kind="stable")]
    sections = {
        "Pictures": range(min(amount, len(dataset.source))),
        "Worst pictures": ranked[: amount // 2].tolist(),
        "Best pictures": ranked[::-1][: amount // 2].tolist(),
    }

    def show(indices: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        for batch in segment_examples(model.segmenter, dataset, names, indices):
            for index, example, result in batch:
                score = progress.image_miou[index]
                said = f"{example.get('name', index)}: {'–' if np.isnan(score) else f'{score:.1f} %'}"
                yield said, picture_row(example["image"], example["label"], result.labels, marked)

    return {title: show(indices) for title, indices in sections.items() if len(indices)}


def _decisive(model: Model) -> tuple[Any, list[Path]]:
    """What scores depend on besides the data: the recipe, and the files of the weights."""
    opened, config = model.opened, model.config
    folders = [opened.folder, *([open_folder(config.init_from)] if opened.way == "linear" else [])]
    recipe = [opened.way, config.model, getattr(config, section_of(opened.way))]
    return recipe, [file for folder in folders for file in folder.files()]


def _remove(folder: Path) -> None:
    hosts.stop_together(None)  # not before the report is written
    remove_progress(folder)


def _setup_seconds() -> float | None:
    """What `make setup` noted beside this interpreter, if it made the environment."""
    note = Path(sys.prefix) / "setup_seconds"
    return float(note.read_text(encoding="utf-8")) if note.is_file() else None
