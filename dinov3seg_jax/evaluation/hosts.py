"""Several processes score one data set: each its own share of the images, and exact sums in the end.

No process waits for another while it counts, so shares need not be equally long. With one process nothing is exchanged.
"""

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Float, Int

from dinov3seg_jax.errors import UserError


def own_share(count: int) -> range:
    """The indices of the images that this process scores: every one is in exactly one process's share."""
    return range(jax.process_index(), count, jax.process_count())


def sum_counts(counts: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The sum over all processes; int64, exact."""
    return _gather(counts).sum(axis=0)


def join_shares(values: Float[np.ndarray, " own"], count: int) -> Float[np.ndarray, " count"]:
    """One float64 for each image of all processes, from those of `own_share`."""
    whole = np.full(count, np.nan)
    whole[own_share(count)] = values
    index = np.arange(count)
    return _gather(whole)[index % jax.process_count(), index]


def stop_together(error: UserError | None) -> None:
    """Raise this process's error, or stop where another one failed: else its sum would be waited for in vain.

    Raises:
        UserError: `error`, or one that names the processes that failed.
    """
    failed = np.flatnonzero(_gather(np.array([error is not None], np.int64))[:, 0])
    if error is not None:
        raise error
    if failed.size:
        raise UserError(f"process {failed[0]} could not read its images; see what it says, mend it and run again.")


def _gather(values: np.ndarray) -> np.ndarray:
    """Values of 8 bytes from every process, [processes, ...], bit for bit: as halves, since JAX would round them."""
    if jax.process_count() == 1:
        return values[None]
    halves = process_allgather(np.ascontiguousarray(values).view(np.uint32))
    return np.ascontiguousarray(halves).view(values.dtype)
