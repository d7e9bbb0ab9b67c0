"""Pieces of work on a Ray cluster: a worker on each accelerator, and others do what a dead one had begun."""

import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dinov3seg_jax.cluster.connecting import workers_of
from dinov3seg_jax.cluster.work import Asked, Piece, Work
from dinov3seg_jax.errors import UserError, note, one_line
from dinov3seg_jax.pictures.batches import Outcome

NUMBER, PIECE, OUTCOMES = "number", "piece", "outcomes"  # columns of Ray's tables; the last two are pickled
FRUITLESS_ROUNDS = 3  # after which a piece is taken for what kills its workers


class Worker:
    """What Ray starts on a machine, as often as it has room."""

    def __init__(self, asked: bytes, beside: int):
        """Load the model; arguments as for `Work`. What is wrong with it is told with the first piece."""
        self._work: Work | None = None
        try:
            self._work = Work(pickle.loads(asked), beside)
        except Exception as error:  # which in here Ray would take for a reason to start more workers
            self._wrong = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"

    def __call__(self, batch: Any) -> Any:
        """A table of pieces to one of outcomes: of whole pieces, so that what was heard of one has been done."""
        answers = [
            self._wrong if self._work is None else list(self._work.do(pickle.loads(piece)))
            for piece in batch[PIECE].to_pylist()
        ]
        return batch.drop_columns([PIECE]).append_column(OUTCOMES, [[pickle.dumps(answer) for answer in answers]])


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
        UserError: a worker cannot load the model, or no machine is left.
    """
    one_round = _round_by_client if ray.util.client.ray.is_connected() else _one_round
    left = dict(enumerate(pieces))
    fruitless = 0  # rounds in a row
    while left and fruitless < FRUITLESS_ROUNDS:
        before = len(left)
        for number, outcomes in one_round(ray, each, left, asked):
            if left.pop(number, None) is not None:
                yield from outcomes
        fruitless = fruitless + 1 if len(left) == before else 0
        if left:
            note(f"workers died; what they had is given to others: {len(left)} of {len(pieces)} pieces of the work")
    for picture in (picture for piece in left.values() for picture in piece.named()):
        said = "every worker that tried it died; see Ray's logs, and whether its memory is enough"
        yield Outcome(picture, None, f"{picture.path} was not segmented: {said}")


def _one_round(
    ray: Any, each: Mapping[str, float], pieces: Mapping[int, Piece], asked: Asked
) -> Iterator[tuple[int, list[Outcome]]]:
    """Do pieces, but for those whose workers die: Ray is not to try these again, as one may be what kills them."""
    workers, takes = workers_of(ray, dict(each)), dict(each)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [{NUMBER: number, PIECE: pickle.dumps(piece)} for number, piece in pieces.items()]
    warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")  # Ray has no other way to say this yet
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(pickle.dumps(asked), workers.beside),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers.number),
        num_cpus=takes.pop("CPU", 0),
        num_gpus=takes.pop("GPU", 0),
        resources=takes,
        ray_remote_args_fn=lambda: {"max_restarts": 0, "max_task_retries": 0},
    )
    try:
        for row in data.iter_rows():
            answer = pickle.loads(row[OUTCOMES])
            if isinstance(answer, str):
                raise UserError(f"a worker of the cluster cannot load the model: {one_line(answer, 300)}")
            yield row[NUMBER], answer
    except ray.exceptions.RayError as error:  # a machine that died while a worker started there ends the round
        note(f"Ray had to begin again ({one_line(error, 200)})")


class Round:
    """A round as a process of the cluster holds it, for a client, through which Ray Data does not run."""

    def __init__(self, each: Mapping[str, float], pieces: bytes, asked: bytes):
        """Arguments as for `_one_round`, the last two pickled."""
        import ray
        import ray.data

        self._round = _one_round(ray, each, pickle.loads(pieces), pickle.loads(asked))

    def next(self) -> Any:
        """The next piece with its outcomes; None after the last, a text where the round cannot go on."""
        try:
            return next(self._round, None)
        except UserError as error:
            return str(error)


def _round_by_client(
    ray: Any, each: Mapping[str, float], pieces: Mapping[int, Piece], asked: Asked
) -> Iterator[tuple[int, list[Outcome]]]:
    """As `_one_round`, on a cluster of which this process is a client."""
    there = ray.remote(num_cpus=0)(Round).remote(each, pickle.dumps(pieces), pickle.dumps(asked))
    try:
        while (found := ray.get(there.next.remote())) is not None:
            if isinstance(found, str):
                raise UserError(found)
            yield found
    except ray.exceptions.RayError as error:
        note(f"Ray had to begin again ({one_line(error, 200)})")
    finally:
        ray.kill(there)
