"""Jobs shared out among processes that never outlive the one that started them."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dinov3seg_jax.data.prepare.example import Job, Outcome, finish
from dinov3seg_jax.errors import UserError

LARGEST_CHUNK = 16


def outcomes(jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    """Finish jobs, and say what became of each, in their order; one worker is this process.

    Raises:
        UserError: as for `finish`; or a process was killed.
    """
    if workers == 1:
        yield from map(finish, jobs)
        return
    chunk = max(1, min(LARGEST_CHUNK, math.ceil(len(jobs) / (4 * workers))))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        try:
            yield from pool.map(finish, jobs, chunksize=chunk)
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps for want of memory; run again with fewer --workers."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
