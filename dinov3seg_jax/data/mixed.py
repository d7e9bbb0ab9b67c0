"""Several data sets in one stream, each with its own names.

Every picture is trained with the names of its own data set: what another calls by a name that this one lacks is no
mistake here. Lists of one length are needed all the same; a shorter one is filled up with names of the others, whose
part of the loss counts 0. The same name in two data sets is one name, whatever its case.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov3seg_jax.config import DataConfig
from dinov3seg_jax.data.datasets import Dataset, class_names, open_dataset
from dinov3seg_jax.data.transforms import IGNORED
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.prompts import spoken_name


class Mixed:
    """Examples of several sources, in proportion to weights: each at least once, and those of some again and again."""

    def __init__(self, datasets: Sequence[Dataset], names: Sequence[str], weights: Sequence[float]) -> None:
        """Count what comes of each.

        Args:
            datasets: whose labels are indices into their own classes.
            names: of all of them; the labels here are indices into these.
            weights: of the data sets.
        """
        self._sources = [dataset.source for dataset in datasets]
        place = {spoken_name(name): index for index, name in enumerate(names)}
        self._own = [np.array([place[spoken_name(name)] for name in d.classes], np.int32) for d in datasets]
        rounds = max(len(source) / weight for source, weight in zip(self._sources, weights, strict=True))
        self._ends = np.cumsum([round(rounds * weight) for weight in weights])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example, and "own": the names of its data set, int32 [n], which are not all that there are."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[which - 1]) if which else 0
        source, own = self._sources[which], self._own[which]
        example = source[(index - first) % len(source)]
        label = np.append(own, np.int32(IGNORED))[example["label"]]  # its last entry is that of label -1
        return example | {"label": label, "own": own}


def mix(first: Dataset, data: DataConfig) -> Dataset:
    """A data set and those of `data.mix`; or as it is, if there are none.

    Args:
        first: of `data.train`, of weight 1.
        data: names the others.

    Raises:
        UserError: one of them cannot be opened, or would bring what `data.validation` holds out.
    """
    if not data.mix:
        return first
    for other in data.mix:
        if data.validation and (other.name, other.root) == (data.train.name, data.train.root):
            raise UserError(
                f"data.mix trains on {other.root}, of which data.validation holds pictures out; leave that out of it."
            )
    datasets = (first, *map(open_dataset, data.mix))
    names = _union([dataset.classes for dataset in datasets])
    weights = [1.0, *(other.weight for other in data.mix)]
    return Dataset(Mixed(datasets, names, weights), names, seen=None, listed=first.listed, parts=datasets)


def trained_names(data: DataConfig) -> tuple[str, ...]:
    """The names of all classes that a run is trained on.

    Raises:
        UserError: as for `datasets.open_dataset`.
    """
    return _union([class_names(one) for one in (data.train, *data.mix)])


def _union(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """As the first list that has a name writes it; a list that has it twice is refused elsewhere."""
    found: dict[str, str] = {}
    for name in (name for names in lists for name in names):
        found.setdefault(spoken_name(name), name)
    return tuple(found.values()) if len(lists) > 1 else tuple(lists[0])
