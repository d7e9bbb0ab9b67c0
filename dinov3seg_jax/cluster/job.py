"""Pieces of work on a Ray cluster: a worker on each accelerator, and others do what a dead one had begun."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dinov3seg_jax.cluster.connecting import workers_of
from dinov3seg_jax.cluster.work import Asked, Piece, Work
from dinov3seg_jax.errors import UserError, note, one_line
from dinov3seg_jax.pictures.batches import Outcome

NUMBER, PIECE, OUTCOMES = "number", "piece", "outcomes"  # columns of Ray's tables; the last two are pickled


class Worker:
    """What Ray starts on a machine, as often as it has room."""

    def __init__(self, asked: bytes, beside: int):
        """Load the model; arguments as for `Work`."""
        self._work = Work(pickle.loads(asked), beside)

    def __call__(self, batch: Any) -> Any:
        """A table of pieces to one of outcomes: of whole pieces, so that what was heard of one has been done."""
        outcomes = [pickle.dumps(list(self._work.do(pickle.loads(piece)))) for piece in batch[PIECE].to_pylist()]
        return batch.drop_columns([PIECE]).append_column(OUTCOMES, [outcomes])


def run_pieces(ray: Any, each: Mapping[str, float], pieces: Sequence[Piece], asked: Asked) -> Iterator[Outcome]:
    """Have workers do pieces, in any order.

    Args:
        ray: connected.
        each: what a worker takes of its machine; see `connecting.workers_of`.
        pieces: small beside all of them, as some are done again when a worker dies.
        asked: of every picture.

    Yields:
        An outcome for each picture. Those of a piece whose every worker died have failed.

    Raises:
        UserError: no worker can load the model, or no machine is left.
    """
    left = dict(enumerate(pieces))
    while left:
        heard = 0
        for number, outcomes in _one_round(ray, each, left, asked):
            heard += left.pop(number, None) is not None
            yield from outcomes
        if left and not heard:
            for piece in left.values():
                for picture in piece.named():
                    said = "every worker that tried it died; see Ray's logs, and whether its memory is enough"
                    yield Outcome(picture, None, f"{picture.path} was not segmented: {said}")
            return
        if left:
            note(f"workers died; what {len(left)} pieces of work they had is given to others")


def _one_round(
    ray: Any, each: Mapping[str, float], pieces: Mapping[int, Piece], asked: Asked
) -> Iterator[tuple[int, list[Outcome]]]:
    """Do pieces, but for those whose workers die: Ray is not to try these again, as one may be what kills them."""
    workers, takes = workers_of(ray, dict(each)), dict(each)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [{NUMBER: number, PIECE: pickle.dumps(piece)} for number, piece in pieces.items()]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(pickle.dumps(asked), workers.beside),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers.number),
        num_cpus=takes.pop("CPU", 0),
        num_gpus=takes.pop("GPU", 0),
        resources=takes,
        max_restarts=0,
        max_task_retries=0,
    )
    try:
        for row in data.iter_rows():
            yield row[NUMBER], pickle.loads(row[OUTCOMES])
    except ray.exceptions.RayError as error:
        raise UserError(f"the cluster cannot do the work ({_cause(error)}); see Ray's logs") from error


def _cause(error: BaseException) -> str:
    cause = error
    while isinstance(inner := getattr(cause, "cause", None) or cause.__cause__, BaseException):
        cause = inner
    return one_line(cause, 300)
