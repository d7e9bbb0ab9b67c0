"""Scores while a run trains: when, which step is the best so far, and whether to go on. It changes nothing that trains.

Who segments and counts stands a floor above (`evaluation.validation`) and is handed in as a `Validator`.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from dinov3seg_jax.config import TrainConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.processes import is_first, tell_all
from dinov3seg_jax.store.evaluations import (
    Evaluation,
    best_of,
    dumps,
    loads,
    read_evaluations,
    since_best,
    write_evaluations,
)
from dinov3seg_jax.training.logs import Logs

TITLES = {"miou": "mIoU", "seen_miou": "seen", "unseen_miou": "unseen", "pixel_accuracy": "pixel accuracy"}


class Scored(NamedTuple):
    """What came of some weights."""

    scores: Mapping[str, float]  # in percent: "miou" and others of TITLES; NaN where no pixel counts
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]  # to look at, by name; of the first process


class Validator(Protocol):
    """Scores weights on `data.eval`. All processes call it together."""

    asked: str  # a digest of what is scored and how

    def __call__(self, weights: Parameters, stop: Callable[[], bool]) -> Scored | None:
        """Segment and count.

        Args:
            weights: of the whole model, as they lie while training. They are not kept.
            stop: asked again and again, equally often by all processes; on True the call is to end.

        Returns:
            None where it was stopped.
        """


def refuse_vain_scoring(options: TrainConfig) -> None:
    """Stop before a run begins that would not do what its options say.

    Raises:
        UserError: there is a patience without scores, or scores of a head that does not train.
    """
    if options.eval_patience and not options.eval_every:
        raise UserError(
            f"train.eval_patience {options.eval_patience} counts scorings, and there is none; set "
            "--config.train.eval_every= to the steps between two."
        )
    if options.eval_every and options.objective != "masks":
        raise UserError(
            f"train.eval_every scores masks, and train.objective '{options.objective}' trains the towers alone; set "
            "eval_every to 0."
        )


class Validation:
    """The scores of one run. All of its processes make one and call its methods in the same order."""

    def __init__(self, options: TrainConfig, validator: Validator | None, workdir: Path, start: int):
        """Go on from what is known of the steps up to `start`; what came later is scored again when it comes again.

        Raises:
            UserError: the file of the scores is damaged.
        """
        self._options, self._validator, self._workdir = options, validator, workdir
        self._evaluations: list[Evaluation] = []
        if is_first():
            found = read_evaluations(workdir)
            self._evaluations = [one for one in found if one.step <= start]
            if self._evaluations != found:  # before a step is saved that they would be taken for scores of
                write_evaluations(workdir, self._evaluations)
        self._evaluations = loads(tell_all(dumps(self._evaluations)))

    def is_due(self, step: int) -> bool:
        """Whether the weights after a step are to be scored, and are not yet."""
        every = self._options.eval_every
        if self._validator is None or not step or (step % every and step != self._options.steps):
            return False
        return (step, self._validator.asked) not in [(one.step, one.asked) for one in self._evaluations]

    def is_best(self, step: int) -> bool:
        """Whether no step up to this one is better, so that it has to be kept."""
        best = best_of(self._evaluations)
        return best is not None and best.step == step

    @property
    def is_over(self) -> bool:
        """Whether the run ends here because it does not get better."""
        patience, known = self._options.eval_patience, self._evaluations
        if self._validator is None or not known or known[-1].asked != self._validator.asked:
            return False
        return 0 < patience <= since_best(known)

    def why_over(self) -> str:
        """What to say of a run that is."""
        last, best = self._evaluations[-1], best_of(self._evaluations)
        assert best is not None
        return (
            f"{self._workdir} ended at step {last.step}: no better mIoU in {since_best(self._evaluations)} scorings "
            f"since step {best.step} ({best.miou:.2f} %); to go on, raise train.eval_patience or set it to 0"
        )

    def __call__(self, step: int, weights: Parameters, stop: Callable[[], bool], logs: Logs) -> None:
        """Score the weights after a step, unless `stop` says so, and tell.

        Raises:
            UserError: a picture cannot be read.
        """
        assert self._validator is not None
        started = time.perf_counter()
        scored = self._validator(weights, stop)
        if scored is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in scored.scores.items()}
        # The first process's numbers are everyone's: what follows from them, such as a save, all do or none does.
        (evaluation,) = loads(tell_all(dumps([Evaluation(step, self._validator.asked, finite)])))
        self._evaluations = [one for one in self._evaluations if one.step < step] + [evaluation]
        if is_first():
            write_evaluations(self._workdir, self._evaluations)
            self._tell(evaluation, time.perf_counter() - started, scored.pictures, logs)

    def _tell(
        self, evaluation: Evaluation, seconds: float, pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]], logs: Logs
    ) -> None:
        known = {name: value for name, value in evaluation.scores.items() if value is not None}
        step = evaluation.step
        logs.scalars(step, {f"validation/{name}": value for name, value in (known | {"seconds": seconds}).items()})
        logs.pictures(step, {f"validation/{name}": picture for name, picture in pictures.items()})
        said = ", ".join(f"{title} {known[name]:.2f} %" for name, title in TITLES.items() if name in known)
        best = best_of(self._evaluations)
        if best is not None:
            said += ", the best so far" if best.step == step else f"; best: {best.miou:.2f} % at step {best.step}"
        tqdm.write(f"step {step}: {said or 'no pixel that was scored has a label'} ({seconds:.1f} s)")
