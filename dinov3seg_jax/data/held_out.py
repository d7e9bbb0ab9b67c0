"""What is trained on and what is scored on: two data sets, or two parts of one folder.

With `data.validation` a picture of `data.train` is held out by a seeded hash of its name. So every picture falls into
one part, and stays there when others are added.
"""

import dataclasses
import hashlib
from typing import Any

from dinov3seg_jax.config import DataConfig, DatasetConfig
from dinov3seg_jax.data.chosen import choose
from dinov3seg_jax.data.datasets import Dataset, open_dataset
from dinov3seg_jax.data.mixed import mix
from dinov3seg_jax.errors import UserError


def open_training(data: DataConfig) -> Dataset:
    """`data.train`, without what is held out, and `data.mix`.

    Raises:
        UserError: as for `open_dataset` and `mixed.mix`, or nothing would be held out, or all.
    """
    dataset = open_dataset(data.train)
    return mix(_part(dataset, data, held_out=False) if data.validation else dataset, data)


def open_evaluation(data: DataConfig) -> Dataset:
    """What is held out of `data.train`; or `data.eval`.

    Raises:
        UserError: as for `open_training`, or both are named.
    """
    dataset = open_dataset(scored_on(data))
    return _part(dataset, data, held_out=True) if data.validation else dataset


def scored_on(data: DataConfig) -> DatasetConfig:
    """The data set that `open_evaluation` opens, or opens a part of.

    Raises:
        UserError: both `data.validation` and `data.eval.root` say what to score on.
    """
    if data.validation and data.eval.root:
        raise UserError(
            f"both data.validation={data.validation} and data.eval.root say what to score on; set "
            "--config.data.validation=0 to keep data.eval, or leave its root out."
        )
    return data.train if data.validation else data.eval


def is_held_out(name: str, share: float, seed: int) -> bool:
    """Whether a picture belongs to the held-out part, by its name alone.

    Args:
        name: of the picture: its path without the ending.
        share: of all pictures that is held out, about.
        seed: another one holds others out.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def _part(dataset: Dataset, data: DataConfig, held_out: bool) -> Dataset:
    source: Any = dataset.source
    if not hasattr(source, "files"):
        raise UserError(
            f"data.validation needs pictures in files, and data set '{data.train.name}' has none here; leave it at 0 "
            "and set data.eval."
        )
    held = [is_held_out(source.files(index)[0], data.validation, data.validation_seed) for index in range(len(source))]
    if len(set(held)) < 2:
        which = "none" if not any(held) else "each"
        raise UserError(
            f"{which} of the {len(held)} pictures of {data.train.root} falls into the {data.validation:.0%} that are "
            "held out; set another --config.data.validation_seed, or another data.validation."
        )
    indices = [index for index, apart in enumerate(held) if apart == held_out]
    return dataclasses.replace(dataset, source=choose(source, indices))
