"""What a run scored while it trained: `<run>/evaluations.json`, which says what its best step is.

Only scores of the same pictures, segmented in the same way, can be compared. So where a run goes on with another
`data.eval` or another recipe, the best step is looked for anew.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.folders import settle

EVALUATIONS_FILE = "evaluations.json"


class Evaluation(NamedTuple):
    """The scores of one step."""

    step: int
    asked: str  # a digest of what was scored and how
    scores: dict[str, float | None]  # in percent; None where no pixel counts

    @property
    def miou(self) -> float | None:
        """Of all classes."""
        return self.scores["miou"]


def read_evaluations(workdir: Path, until: float = math.inf) -> list[Evaluation]:
    """Those of steps up to `until`, oldest first; none where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / EVALUATIONS_FILE
    try:
        return [found for found in loads(path.read_text(encoding="utf-8")) if found.step <= until]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:  # JSON's, or of another form
        raise UserError(
            f"{path} is damaged ({reason(error)}); put it back from a copy, or delete it, and with it what is known of "
            "the best step."
        ) from None


def write_evaluations(workdir: Path, evaluations: Iterable[Evaluation]) -> None:
    """Replace the file; when this returns, a power cut would leave it."""
    write_whole(workdir / EVALUATIONS_FILE, f"{dumps(evaluations)}\n".encode())
    settle(workdir / EVALUATIONS_FILE)
    settle(workdir)


def dumps(evaluations: Iterable[Evaluation]) -> str:
    """As JSON, a line for each."""
    return "[\n" + ",\n".join(f" {json.dumps(one._asdict(), allow_nan=False)}" for one in evaluations) + "\n]"


def loads(text: str) -> list[Evaluation]:
    """What `dumps` wrote.

    Raises:
        ValueError, TypeError, KeyError: it did not.
    """
    found = [Evaluation(**entry) for entry in json.loads(text)]
    if any(one.miou is not None and not math.isfinite(one.miou) for one in found):
        raise ValueError("a score is not finite")
    return sorted(found)


def best_of(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one of the highest mIoU, of equals the first, among those that can be compared with the last."""
    alike = [one for one in evaluations if one.asked == evaluations[-1].asked and one.miou is not None]
    return max(alike, key=lambda one: one.miou or 0.0, default=None)


def since_best(evaluations: Sequence[Evaluation]) -> int:
    """How many came after the best one without being better."""
    best = best_of(evaluations)
    return sum(one.step > best.step and one.asked == best.asked for one in evaluations) if best else 0


def best_steps(workdir: Path, steps: Iterable[int]) -> set[int]:
    """What was the best step when each of some steps was the newest."""
    evaluations = read_evaluations(workdir)
    best = (best_of([one for one in evaluations if one.step <= step]) for step in steps)
    return {one.step for one in best if one is not None}
