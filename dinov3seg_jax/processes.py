"""Several processes of one run: how they find each other, who speaks, and how they end.

Where one of them dies, the others cannot go on. JAX notices a broken connection at once and a silent process by its
missing heartbeats, and ends all of them; this module sees to it that this happens within a minute, and that the last
line on the terminal says what to do. A process by itself needs nothing of this.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator

from dinov3seg_jax.errors import LOST, UserError, is_outage, one_line, outage_sentence
from dinov3seg_jax.local_devices import local_device_ids

HEARTBEAT_SECONDS = 30  # of silence, after which a process is taken for dead; JAX's own default is 100
KILLED = (
    "error: this process was killed, or could not reach the others of its run (see above, and what they say); "
    "start all of them again with the same command, and the run goes on from what is saved."
)
# A small process beside this one: when this one ends, it says KILLED, unless it was told that all is said.
LAST_WORDS = "import sys\nif not sys.stdin.buffer.read(): print(sys.argv[1], file=sys.stderr)"
# What the errors of collectives, barriers and remote calls have in common when the other end is gone.
SIGNS_OF_LOSS = ("Gloo", "NCCL", "closed by peer", "reset by peer", "heartbeat", "UNAVAILABLE", "unhealthy")


def is_first() -> bool:
    """Whether this process speaks and writes for all processes of its run."""
    import jax

    return jax.process_index() == 0


def say(text: str) -> None:
    """Print a line for the whole run: of several processes, the first one does."""
    if is_first():
        print(text, flush=True)


def check_once(check: Callable[[], object]) -> None:
    """Have the first process check something for all processes of its run: they go on together, or stop together.

    Raises:
        UserError: what `check` raised; in the other processes, one that points to the first.
    """
    import jax

    if jax.process_count() == 1:
        check()
        return
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices

    sync_global_devices("before a check")  # Gloo has 30 seconds to connect, but once it is, waits as long as it takes
    error = None
    if is_first():
        try:
            check()
        except UserError as its_own:
            error = its_own
    failed = bool(broadcast_one_to_all(np.bool_(error is not None)))
    if error is not None:
        raise error
    if failed:
        raise UserError("process 0 cannot use the data; see what it says, mend it, and start all of them again.")


def tell_all(text: str) -> str:
    """What the first process says, in all processes of its run, which call this together."""
    import jax

    if jax.process_count() == 1:
        return text
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    own = np.frombuffer(text.encode(), np.uint8)
    length = int(broadcast_one_to_all(np.int32(own.size)))
    said = broadcast_one_to_all(own if is_first() else np.zeros(length, np.uint8))
    return bytes(np.asarray(said)).decode()


def agree(said: str) -> None:
    """Check that all processes of the run, which call this together, say the same.

    Raises:
        UserError: they do not; in all of them.
    """
    import jax

    if jax.process_count() == 1:
        return
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    differs = process_allgather(np.bool_(tell_all(said) != said))
    if differs.any():
        raise UserError(
            f"process {int(differs.argmax())} of this run does not see what process 0 sees: the same pictures, "
            "results, options and version of this program; give all the same command, on a folder that they share."
        )


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags by which a command joins the other processes of its run."""
    group = parser.add_argument_group(
        "several processes", "give the same command in each process; a single process needs none of these"
    )
    group.add_argument(
        "--distributed", action="store_true", help="find the other processes: on TPU VMs, GKE, Slurm, Open MPI"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="instead of --distributed: the address of process 0")
    group.add_argument("--processes", type=int, metavar="N", help="with --coordinator: how many there are")
    group.add_argument("--process", type=int, metavar="I", help="with --coordinator: which one this is, from 0")


def are_named(options: argparse.Namespace) -> bool:
    """Whether the flags say that this is one of several processes; arguments and errors as for `joined`."""
    return _named(options) is not None


@contextlib.contextmanager
def joined(options: argparse.Namespace) -> Iterator[None]:
    """Be one of the run's processes for as long as the block takes; all of them leave it together.

    One that fails inside ends the interpreter at once, with status 2 for a `UserError`, LOST where another process
    was the reason, and else 1: an orderly end would wait for the others, and they for it.

    Args:
        options: with what `add_process_arguments` added. Where no flag is set, the block is just run.

    Raises:
        UserError: the flags contradict each other, or the others cannot be reached.
    """
    named = _named(options)
    if named is None:
        yield
        return
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    last_words = subprocess.Popen(
        [sys.executable, "-S", "-c", LAST_WORDS, KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a signal for this process is not meant for it
    )
    try:
        _connect(*named)
    except UserError:
        last_words.communicate(b"said")
        raise
    stopped: SystemExit | None = None
    try:
        try:
            yield
        except SystemExit as end:  # on a signal, in all processes
            stopped = end
        sync_global_devices("leave")
        jax.distributed.shutdown()
    except BaseException as error:
        status = _report(error)
        sys.stdout.flush()
        last_words.communicate(b"" if status == LOST and not is_outage(error) else b"said")
        os._exit(status)
    last_words.communicate(b"said")
    if stopped is not None:
        raise stopped


def _named(options: argparse.Namespace) -> tuple[str | None, int | None, int | None] | None:
    """Coordinator, number of processes and own number, as far as the flags say them; None for a single process."""
    named = (options.coordinator, options.processes, options.process)
    if named == (None, None, None):
        return named if options.distributed else None
    if options.distributed:
        raise UserError("--distributed finds the processes by itself; leave it out, or --coordinator and its numbers.")
    if None in named or not 0 <= options.process < options.processes:
        raise UserError(
            "--coordinator HOST:PORT, --processes N and --process I go together, I from 0 to N - 1; give all three."
        )
    return named


def _connect(coordinator: str | None, processes: int | None, process: int | None) -> None:
    import jax

    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            local_device_ids(os.environ),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"the processes of this run did not find each other ({reason}); "
            "name them with --coordinator HOST:PORT --processes N --process I, and start all of them."
        ) from error


def _report(error: BaseException) -> int:
    """Say why this process ends, and with which status."""
    lost = next((str(e) for e in (error, error.__cause__, error.__context__) if _is_loss(e)), None)
    if lost is not None:
        reason = one_line(lost, 200)
        print(f"another process of this run was lost: {reason}", file=sys.stderr, flush=True)
        return LOST
    if is_outage(error):
        said = str(error) if isinstance(error, UserError) else outage_sentence(error)
        print(f"error: {said}", file=sys.stderr, flush=True)
        return LOST
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("stopped", file=sys.stderr, flush=True)
        return 130
    traceback.print_exception(error)
    return 1


def _is_loss(error: BaseException | None) -> bool:
    return error is not None and any(sign in str(error) for sign in SIGNS_OF_LOSS)
