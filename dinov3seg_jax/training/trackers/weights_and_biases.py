"""Weights & Biases. Its own settings hold: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, `wandb login`."""

import os
from collections.abc import Mapping

import numpy as np
import wandb

from dinov3seg_jax.training.trackers.table import Opening

PROJECT = "dinov3seg"  # unless WANDB_PROJECT says another


class WeightsAndBiases:
    """See `Tracker`."""

    def __init__(self, opening: Opening):
        """Begin a run there, or go on with the one that an earlier process began."""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(opening.workdir),
            id=opening.identity or None,
            resume="allow",
            name=opening.title,
            config=opening.options,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.identity = self._run.id
        # Its own count cannot go back, as a resumed run does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **values})

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step} | {name: wandb.Image(picture) for name, picture in pictures.items()})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()
        wandb.teardown()  # waits for its process: `finish` does not, and up to 32 KiB are not in an offline run's file


open_tracker = WeightsAndBiases
