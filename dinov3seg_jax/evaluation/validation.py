"""Scores of a run's weights while it trains: `train` is what the command and the public API call."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.data.census import check_masks
from dinov3seg_jax.data.datasets import check_classes
from dinov3seg_jax.data.held_out import open_evaluation, scored_on
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import hosts
from dinov3seg_jax.evaluation.confusion import ConfusionMatrix, scores
from dinov3seg_jax.evaluation.count import BATCH_SIZE, segment_examples
from dinov3seg_jax.evaluation.dinov3_scores import area_scores
from dinov3seg_jax.evaluation.evaluate import counted, mark_unseen, seen_classes
from dinov3seg_jax.evaluation.report import picture_row
from dinov3seg_jax.inference.device.sharing import whole_on
from dinov3seg_jax.inference.load import head_segmenter
from dinov3seg_jax.inference.recipes import RESULTS_VERSION
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.views.catseg import seen_side
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.processes import check_once, is_first
from dinov3seg_jax.training import loop
from dinov3seg_jax.training.validation import TITLES, Scored
from dinov3seg_jax.visualize.shrinking import shrunk, shrunk_picture

PANEL = 384  # pixels of the longer side of a picture in the logs


def train(config: Config) -> Path:
    """Train, or continue, and return the run's folder; see `training.loop.train`.

    With `train.eval_every`, `data.eval` is scored as the run goes, and the best step is kept.
    """
    return loop.train(config, ScoresOfWeights)


class ScoresOfWeights:
    """Segments `data.eval` with weights as they lie while a run trains, and counts: a `training.validation.Validator`.

    Programs are compiled when the first weights are scored. No weights are kept, and of those that every device holds
    as a whole none are copied.
    """

    def __init__(self, config: Config):
        """Open the data, and refuse what could not be scored before a run takes a step.

        Args:
            config: of the run.

        Raises:
            UserError: the data, their names, or how pictures are to be seen.
        """
        dataset = open_evaluation(config.data)
        if not config.model.linear.classes:
            check_classes(dataset.classes, dataset.names_from, config.inference.templates, config.model)
        check_once(functools.partial(check_masks, dataset))
        if config.train.eval_view == "whole":
            config = dataclasses.replace(config, inference=one_view(config.inference, config.model.vision.patch_size))
        self._devices = jax.local_devices()
        self._segmenter = head_segmenter(config, {}, self._devices)
        self._segmenter.check_names(dataset.classes)
        self._dataset, self._linear = dataset, config.model.linear.classes > 0
        self._classes, self._seen = counted(dataset, None if self._linear else seen_classes(dataset, config))
        count = len(dataset.source)
        self._images = spread(count, config.train.eval_images or count)
        self._shown = [self._images[place] for place in spread(len(self._images), config.train.eval_pictures)]
        held_out = [scored_on(config.data), config.data.validation, config.data.validation_seed]
        described = [*held_out, dataset.classes, self._images, config.inference, RESULTS_VERSION]
        encoded = json.dumps(described, default=dataclasses.asdict)
        self.asked = hashlib.sha256(encoded.encode()).hexdigest()[:16]

    def __call__(self, weights: Parameters, stop: Callable[[], bool]) -> Scored | None:
        """See `Validator`."""
        segmenter = self._segmenter.with_parameters(whole_on(self._devices, weights))
        segment = functools.partial(segment_examples, segmenter, self._dataset, self._dataset.classes)
        own = [self._images[place] for place in hosts.own_share(len(self._images))]
        rounds = -(-len(self._images) // (BATCH_SIZE * jax.process_count()))  # of the process that has the most
        confusion, pictures = ConfusionMatrix(len(self._classes)), dict.fromkeys(self._shown if is_first() else ())
        batches, error = segment(own), None
        for _ in tqdm(range(rounds), desc="scoring", unit="batch", leave=False, delay=5, disable=not is_first()):
            if stop():
                return None
            try:
                for index, example, result in next(batches, ()):
                    confusion.add(result.labels, example["label"])
                    if index in pictures:
                        pictures[index] = self._draw(index, example, result)
            except UserError as caught:  # the others hear of it when they have counted theirs
                error = caught
        hosts.stop_together(error)
        elsewhere = [index for index, picture in pictures.items() if picture is None]  # in the shares of others
        for batch in segment(elsewhere):
            pictures |= {index: self._draw(index, example, result) for index, example, result in batch}
        counts = hosts.sum_counts(confusion.counts)
        found = area_scores(counts) if self._linear else scores(counts, self._seen)
        return Scored(
            {name: float(found[name]) for name in TITLES if name in found},
            {name: picture for name, picture in filter(None, pictures.values())},
        )

    def _draw(self, index: int, example: dict[str, Any], result: Segmentation) -> tuple[str, np.ndarray]:
        """A picture's name, and the row that shows it."""
        truth, labels = (shrunk(one, PANEL) for one in (example["label"], result.labels))
        names = mark_unseen(self._classes, self._seen)
        return str(example.get("name", index)), picture_row(
            shrunk_picture(example["image"], PANEL), truth, labels, names
        )


def spread(count: int, wanted: int) -> list[int]:
    """So many of the numbers from 0 to count - 1, evenly spread; all of them where there are no more."""
    wanted = min(wanted, count)
    return [place * count // wanted for place in range(wanted)]


def one_view(options: InferenceConfig, patch_size: int) -> InferenceConfig:
    """The recipe's sizes with each picture seen once, as a whole."""
    if options.resize == "catseg":
        side = seen_side(options, patch_size)
        return dataclasses.replace(options, mode="whole", resize="square", image_size=side, view_size=0)
    resize = "square" if options.resize == "tiled" else options.resize
    return dataclasses.replace(options, mode="whole", resize=resize)
