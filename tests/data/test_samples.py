"""Real pictures from disk, through grain, into training and scoring: the same whatever reads them."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax.config import Config, DataConfig, DatasetConfig, InferenceConfig, TrainConfig
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.pipeline import train_iterator
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.training.loop import train
from tests.tiny import MODEL

SETS = {
    "coco_panoptic": ("train", "val"),
    "ade20k_150": ("eval", "eval"),  # only two pictures, of the validation split
}


def _data(samples: Path, name: str, workers: int = 0) -> DataConfig:
    train, evaluation = (DatasetConfig(name=name, split=split, root=str(samples / name)) for split in SETS[name])
    return DataConfig(
        train=train, eval=evaluation, crop_size=64, short_side=(64, 96), classes_per_image=24, workers=workers
    )


def _batches(data: DataConfig, count: int) -> list[dict[str, np.ndarray]]:
    stream = train_iterator(open_dataset(data.train), data, 2, seed=3)
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", SETS)
def test_workers_give_real_pictures_in_the_same_order_with_the_same_pixels(samples, name, workers):
    expected = _batches(_data(samples, name), 12)  # more than an epoch
    for one, other in zip(expected, _batches(_data(samples, name, workers), 12), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def _train_and_score(samples: Path, name: str, workers: int, workdir: Path) -> tuple[list[float], dict]:
    config = Config(
        model=MODEL,
        data=_data(samples, name, workers),
        train=TrainConfig(steps=3, batch_size=2, log_every=1, learning_rate=1e-3),
        inference=InferenceConfig(resize="short_side", image_size=64, window=64, stride=32),
        workdir=str(workdir),
        report_images=1,
    )
    result = evaluate(config, train(config))
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in log], {key: result[key] for key in ("miou", "pixel_accuracy")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_real_pictures_train_and_score_the_same_with_any_number_of_workers(samples, name, tmp_path):
    losses, scores = _train_and_score(samples, name, 0, tmp_path / "0")
    assert len(losses) == 3
    assert len(set(losses)) == 3
    assert 0 < scores["pixel_accuracy"] <= 100
    # What one worker gives is the same too, as the test above finds.
    assert _train_and_score(samples, name, 2, tmp_path / "2") == (losses, scores)


def test_real_pictures_are_the_same_again(samples):
    data = _data(samples, "coco_panoptic")
    first, second = _batches(data, 2), _batches(dataclasses.replace(data, workers=0), 2)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert len(np.unique(first[0]["image"])) > 100
