"""What a tracker does, and those there are (`train.trackers`)."""

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError, note, one_line
from dinov3seg_jax.places import is_remote


class Tracker(Protocol):
    """Takes the records of one run, from one process."""

    identity: str  # what it calls the run; "": it has no name of its own

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers as of a step, counted from 1."""

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Record pictures, uint8 [h, w, 3]."""

    def close(self) -> None:
        """Flush everything."""


class Opening(NamedTuple):
    """What a tracker is opened with."""

    workdir: Path  # the run's folder, or one on a disk whose files are copied there
    title: str  # of the run, for people
    start: int  # step from which the run goes on: what was recorded past it is void
    identity: str  # from an earlier process of the run, or ""
    options: dict[str, Any]  # of the run, nested


TRACKERS = {  # name: module with `open_tracker(Opening) -> Tracker`, library that it needs, extra that has it
    "tensorboard": ("board", "tensorboardX", ""),
    "wandb": ("weights_and_biases", "wandb", "wandb"),
    "mlflow": ("ml_flow", "mlflow", "mlflow"),
}

MENDS = {"wandb": "log in, or set WANDB_MODE=offline"}


def refuse_missing_libraries(names: Sequence[str], workdir: Path) -> None:
    """Stop before there is work that could be lost.

    Raises:
        UserError: a tracker's library is not installed, or it would keep a data base in a bucket.
    """
    if "mlflow" in names and is_remote(workdir) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"train.trackers names mlflow, whose data base would be in '{workdir}', and a bucket holds none; set "
            "MLFLOW_TRACKING_URI to a server, or leave it out."
        )
    for name in names:
        _, library, extra = TRACKERS[name]
        if importlib.util.find_spec(library) is None:
            raise UserError(
                f"train.trackers names {name}, and its library is not installed; "
                f"run pip install 'dinov3seg_jax[{extra}]', or leave it out."
            )


def open_trackers(config: Config, folder: Path, start: int, identities: dict[str, str]) -> list[Tracker]:
    """Open those that `train.trackers` names; in one process of a run.

    Args:
        config: of the run.
        folder: on a disk, for what they write to files.
        start: step from which it goes on.
        identities: what trackers called it in an earlier process; those of new ones are added.

    Raises:
        UserError: a tracker cannot be reached.
    """
    opened: list[Tracker] = []
    for name in config.train.trackers:
        opening = Opening(folder, config.workdir, start, identities.get(name, ""), dataclasses.asdict(config))
        try:
            module = importlib.import_module(f"dinov3seg_jax.training.trackers.{TRACKERS[name][0]}")
            tracker = module.open_tracker(opening)
        except Exception as error:  # of many types, each library's own
            raise UserError(
                f"train.trackers: {name} cannot be used ({one_line(error, 200)}); {MENDS.get(name, 'mend that')}, or "
                "leave it out."
            ) from error
        opened.append(tracker if name == "tensorboard" else Forgiving(name, tracker))
        if tracker.identity:
            identities[name] = tracker.identity
    return opened


class Forgiving:
    """A tracker over the network: that it fails ends the curves there, not the training."""

    def __init__(self, name: str, tracker: Tracker):
        """Wrap one."""
        self._name, self._tracker = name, tracker
        self.identity = tracker.identity

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._try("scalars", step, values)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        self._try("pictures", step, pictures)

    def close(self) -> None:
        """See `Tracker`."""
        self._try("close")

    def _try(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self._tracker, what)(*arguments)
        except Exception as error:  # of many types, each library's own
            note(f"{self._name} did not take a record ({one_line(error, 150)}); log.jsonl has all of them")
