"""What makes a confidence a probability of being right: a temperature, fitted on labelled pictures, kept by the model.

After Guo et al., "On Calibration of Modern Neural Networks" (2017), for one number a pixel: it turns each score into
another by a curve that only rises, so that no label changes. JAX is not needed here.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from jaxtyping import Float

from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.files import write_whole

FILE = "calibration.json"  # in a model's folder, by the way in which it is used

Kind = Literal["sigmoid", "softmax"]  # each class has a score of its own, or all classes share one probability


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Calibration:
    """A fitted temperature.

    Attributes:
        kind: what the scores are.
        temperature: by which their logits are divided; above 1 it makes them less sure.
        weights: fingerprint of those that it was fitted to.
        options: by which pictures were segmented then.
    """

    kind: Kind
    temperature: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
    weights: str
    options: dict[str, Any]

    def __call__(self, scores: Float[np.ndarray, "*any"], classes: int) -> Float[np.ndarray, "*any"]:
        """Scores in [0, 1], calibrated; `classes` is the number of names that shared the probability."""
        return tempered(margins(scores, self.kind, classes), self.temperature, self.kind, classes).astype(scores.dtype)


def margins(scores: Float[np.ndarray, "*any"], kind: Kind, classes: int) -> Float[np.ndarray, "*any"]:
    """Logits of scores; of a softmax's the margin over the other classes, as if these were all alike."""
    from scipy.special import logit  # here, as few models are calibrated

    return logit(np.clip(scores, 0, 1)) + _others(kind, classes)


def tempered(
    margins: Float[np.ndarray, "*any"], temperature: float, kind: Kind, classes: int
) -> Float[np.ndarray, "*any"]:
    """The scores of margins at a temperature; 1 undoes `margins`."""
    from scipy.special import expit

    others = _others(kind, classes)
    return expit(margins / np.float32(temperature) - others)


def _others(kind: Kind, classes: int) -> np.float32:
    return np.float32(np.log(classes - 1) if kind == "softmax" and classes > 1 else 0)


def read_calibration(folder: Path, way: str) -> Calibration | None:
    """The calibration of a model that is used in this way; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    return _read(folder).get(way)


def write_calibration(folder: Path, way: str, calibration: Calibration) -> Path:
    """Keep a calibration, beside those of other ways.

    Returns:
        The file.

    Raises:
        UserError: the folder cannot be written, or what is there is damaged.
    """
    path = folder / FILE
    every = {name: dataclasses.asdict(one) for name, one in (_read(folder) | {way: calibration}).items()}
    try:
        write_whole(path, f"{json.dumps(every, indent=2)}\n".encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({reason(error)}); copy the model to a folder of yours") from error
    return path


def _read(folder: Path) -> dict[str, Calibration]:
    path = folder / FILE
    try:
        return pydantic.TypeAdapter(dict[str, Calibration]).validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error, 150)}); delete it, and calibrate again") from error
