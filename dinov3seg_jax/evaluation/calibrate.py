"""Fit a model's temperature on labelled pictures."""

from typing import NamedTuple

from tqdm import tqdm

from dinov3seg_jax.data.census import check_masks
from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.evaluation.calibration_counts import Counts
from dinov3seg_jax.evaluation.count import segment_examples
from dinov3seg_jax.inference.base import BaseSegmenter


class Fitted(NamedTuple):
    """What was found."""

    temperature: float
    pixels: int  # with a label
    accuracy: float  # share of them that are right
    errors: tuple[float, float]  # expected calibration error before and after


def fit(segmenter: BaseSegmenter, dataset: Dataset) -> Fitted:
    """Segment every picture of a data set, and fit the temperature.

    Args:
        segmenter: not calibrated.
        dataset: with labels.

    Raises:
        UserError: the model does not take its names, a picture cannot be read, or there is nothing to fit.
    """
    check_masks(dataset)
    asked = segmenter.check_names(dataset.classes)
    counts = Counts(segmenter.confidence_kind, len(asked.rows))
    with tqdm(total=len(dataset.source), unit="image", dynamic_ncols=True, disable=None) as bar:
        for batch in segment_examples(segmenter, dataset, asked.names, range(len(dataset.source))):
            for _, example, result in batch:
                counts.add(result.labels, result.confidence, example["label"])
            bar.update(len(batch))
    temperature = counts.temperature()
    pixels = int(counts.wrong_right.sum())
    accuracy = float(counts.wrong_right[1].sum() / pixels)
    return Fitted(temperature, pixels, accuracy, (counts.error(1), counts.error(temperature)))
