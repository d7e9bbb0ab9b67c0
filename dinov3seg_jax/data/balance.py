"""Rare classes: pictures that show them come more often, and their part of the loss counts more.

Both follow from one count of all masks, so that they depend on the data set alone: what a run sees and minimises is
the same in every process and after every restart.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.data.census import THREADS, Masks, count_values
from dinov3seg_jax.data.chosen import choose
from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.errors import UserError

ClassWeights = Literal["none", "inverse_sqrt", "inverse"]
POWERS = {"inverse_sqrt": -0.5, "inverse": -1.0}
LARGEST = 10.0  # weight of a class, and 1 / LARGEST is the smallest


def for_rare_classes(dataset: Dataset, balance: float, class_weights: ClassWeights) -> Dataset:
    """The data set with pictures repeated and classes weighed; or as it is, if neither is asked for.

    Args:
        dataset: to be trained on.
        balance: as for `repeats`.
        class_weights: as for `weights`.

    Raises:
        UserError: the data set has no masks on disk, or one of them cannot be read.
    """
    if not balance and class_weights == "none":
        return dataset
    if dataset.parts:
        raise UserError("data.balance and train.class_weights are of one data set; leave them or data.mix out.")
    if not isinstance(dataset.source, Masks):
        raise UserError(
            "data.balance and train.class_weights need masks that can be counted, and this data set has none on disk; "
            "leave both out."
        )
    pixels = count_classes(dataset.source, len(dataset.classes))
    source: Any = dataset.source
    if balance:
        source = choose(source, np.repeat(np.arange(len(pixels)), repeats(pixels > 0, balance)).tolist())
    weighed = None if class_weights == "none" else tuple(weights(pixels.sum(axis=0), class_weights).tolist())
    return dataclasses.replace(dataset, source=source, weights=weighed)


def count_classes(source: Masks, class_count: int) -> Int[np.ndarray, "pictures classes"]:
    """Pixels of each class in each picture.

    Raises:
        UserError: as `source.mask` does.
    """

    def count(index: int) -> Int[np.ndarray, " classes"]:
        mask, pixels = source.mask(index), np.zeros(class_count, np.int64)
        for value, number in count_values(mask).pixels.items():
            place = source.reader.class_of_id.get(value)
            if place is not None:
                pixels[place] += number
        return pixels

    with ThreadPoolExecutor(THREADS) as pool:
        return np.stack([*pool.map(count, range(len(source)))])


def repeats(shows: np.ndarray, balance: float) -> Int[np.ndarray, " pictures"]:
    """How often each picture comes in an epoch: at least once, and as often as its rarest class is to come.

    A class that is in a share f of the pictures is to come (F / f) ** `balance` times as often, where F is the share of
    the most frequent one. After the repeat factors of LVIS (Gupta et al. 2019), whose power is 1/2. Fractions are
    rounded so that the sum over pictures stays.

    Args:
        shows: bool [pictures, classes], which class is in which picture.
        balance: 0, none is repeated, to 1: all classes come equally often, if each were alone in its pictures.
    """
    share = shows.mean(axis=0)
    factor = np.where(share > 0, share.max() / np.maximum(share, 1 / len(shows)), 1) ** balance
    wanted = np.where(shows, factor, 1).max(axis=1, initial=1)
    return np.diff(np.floor(np.cumsum(wanted) + 1e-6).astype(np.int64), prepend=0)


def weights(pixels: Int[np.ndarray, " classes"], kind: ClassWeights) -> Float[np.ndarray, " classes"]:
    """What each class's part of the loss counts, by its pixels: 1 / sqrt(pixels) or 1 / pixels, of mean 1.

    Then within 1 / `LARGEST` and `LARGEST`. A class without a pixel has 1, and is not in the mean.

    Args:
        pixels: of each class in the whole data set.
        kind: "inverse_sqrt" or "inverse".
    """
    there = pixels > 0
    raw = np.maximum(pixels, 1.0) ** POWERS[kind]
    scaled = raw / raw[there].mean() if there.any() else raw
    return np.where(there, np.clip(scaled, 1 / LARGEST, LARGEST), 1.0)
