"""Whether a step fits a device's memory, and which options make it fit."""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dinov3seg_jax.config import Config, to_config_dict
from dinov3seg_jax.config_files import apply_override, from_dict
from dinov3seg_jax.costs.step_memory import StepMemory

SHARE = 0.9  # of a memory may be planned for: libraries take workspace, and an allocator leaves gaps
CLASSES = (96, 48, 24)  # of an image, at most: what is tried last, for it trains differently

# What is tried one after the other, each beside those before it. It changes rounding and time, and nothing else.
SAVINGS: tuple[dict[str, object], ...] = (
    {"model.dtype": "bfloat16", "train.frozen_dtype": "bfloat16"},
    {"model.remat": True},
    {"model.early.remat": True},
    {"model.late.remat": True, "model.decoder.remat": True},
)


class Attempt(NamedTuple):
    """A config with some more options, and what it needs."""

    options: tuple[str, ...]  # as in "model.remat=True"
    needed: StepMemory

    @property
    def words(self) -> str:
        """The options as they are typed."""
        return " ".join(f"--config.{option}" for option in self.options)

    def fits(self, memory: int) -> bool:
        """Whether it leaves enough of so many bytes free."""
        return self.needed.total <= SHARE * memory


def attempts(
    config: Config, devices: int, class_count: int, measure: Callable[[Config], StepMemory]
) -> Iterator[Attempt]:
    """What saves memory, ever more of it.

    Args:
        config: of the run.
        devices: along the data axis.
        class_count: names of the data set.
        measure: what a config needs.
    """
    options: dict[str, object] = {}
    for more in _savings(config, devices, class_count):
        new = {key: value for key, value in more.items() if operator.attrgetter(key)(config) != value}
        if new:
            options |= new
            words = tuple(f"{key}={value}" for key, value in options.items())
            yield Attempt(words, measure(_with(config, words)))


def _savings(config: Config, devices: int, class_count: int) -> Iterator[dict[str, object]]:
    yield from SAVINGS
    batch, parts = config.train.batch_size, config.train.accumulate
    for more in range(parts + 1, batch // devices + 1):
        if batch % (more * devices) == 0:
            yield {"train.accumulate": more}
    for count in CLASSES:
        if count < min(config.data.classes_per_image or class_count, class_count):
            yield {"data.classes_per_image": count}


def _with(config: Config, options: Sequence[str]) -> Config:
    values = to_config_dict(config).to_dict()
    for option in options:
        apply_override(values, option)
    return from_dict(values)
