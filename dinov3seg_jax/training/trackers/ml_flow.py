"""MLflow: a server that MLFLOW_TRACKING_URI names, or a data base in the run's folder."""

import os
import time
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from dinov3seg_jax.training.trackers.table import Opening

EXPERIMENT = "dinov3seg"  # unless MLFLOW_EXPERIMENT_NAME says another
DATABASE, ARTIFACTS = "mlflow.db", "mlflow"  # in the run's folder, where no server is named
LONGEST_VALUE = 500  # characters of an option, the least that any of its stores takes


class MlFlow:
    """See `Tracker`."""

    def __init__(self, opening: Opening):
        """Begin a run there, or go on with the one that an earlier process began."""
        local = opening.workdir.resolve()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=server or f"sqlite:///{local / DATABASE}")
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(title)
        if found is not None:
            experiment = found.experiment_id
        else:
            place = None if server else (local / ARTIFACTS).as_uri()
            experiment = self._client.create_experiment(title, artifact_location=place)
        self.identity = opening.identity if self._is_known(opening.identity) else ""
        if self.identity:
            self._client.update_run(self.identity, status="RUNNING")
            return
        self.identity = self._client.create_run(experiment, run_name=opening.title).info.run_id
        options = [
            Param(name, str(value)[:LONGEST_VALUE]) for name, value in flatten_dict(opening.options, sep=".").items()
        ]
        for first in range(0, len(options), 100):  # as many as it takes at once
            self._client.log_batch(self.identity, params=options[first : first + 100])

    def _is_known(self, identity: str) -> bool:
        try:
            return bool(identity) and self._client.get_run(identity) is not None
        except MlflowException:
            return False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.identity, metrics=[Metric(name, value, now, step) for name, value in values.items()]
        )

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        for name, picture in pictures.items():
            self._client.log_image(self.identity, picture, key=name, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.identity)


open_tracker = MlFlow
