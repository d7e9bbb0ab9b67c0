"""What a run says of its length."""

import pytest

from dinov3seg_jax.config import DatasetConfig, TrainConfig
from dinov3seg_jax.data.datasets import picture_count
from dinov3seg_jax.training.extent import extent


@pytest.mark.parametrize(
    ("steps", "batch", "pictures", "said"),
    [
        (80_000, 4, 118_287, "80,000 steps of 4 crops, 2.71 epochs of 118,287 pictures"),
        (80_000, 256, 118_287, "80,000 steps of 256 crops, 173 epochs of 118,287 pictures"),
        (10, 8, None, "10 steps of 8 crops, 80 in all"),
        (10, 8, 2**31, "10 steps of 8 crops, 80 in all"),
        (10, 8, 800, "10 steps of 8 crops, 0.1 epochs of 800 pictures"),
    ],
)
def test_epochs_or_crops(steps, batch, pictures, said):
    assert extent(TrainConfig(steps=steps, batch_size=batch), pictures) == said


def test_a_benchmark_has_as_many_pictures_as_it_was_published_with_and_needs_no_file():
    assert picture_count(DatasetConfig(name="coco_stuff_171")) == 118_287
    assert picture_count(DatasetConfig(name="coco_stuff_171", split="validation")) == 5000
    assert picture_count(DatasetConfig(name="coco_stuff_171", split="absent")) is None
    assert picture_count(DatasetConfig(name="painted_scenes", size=7)) == 7
