"""TensorBoard: events in the run's folder."""

from collections.abc import Mapping

import numpy as np
from tensorboardX import SummaryWriter

from dinov3seg_jax.training.trackers.table import Opening

FOLDER = "tensorboard"


class Board:
    """See `Tracker`."""

    identity = ""

    def __init__(self, opening: Opening):
        """Begin a file of events; viewers drop what an earlier one has past `start`."""
        self._writer = SummaryWriter(str(opening.workdir / FOLDER), purge_step=opening.start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


open_tracker = Board
