"""Run-length codes of many regions at once."""

import numpy as np
from jaxtyping import Int


class Runs:
    """Where each region begins and how long it goes on, along the rows, one row after the other."""

    def __init__(self, ids: Int[np.ndarray, "h w"], count: int, split: bool = False):
        """Find all runs.

        Args:
            ids: of each pixel's region, below `count`; pixels below 0 are in none. Transposed, runs go along columns.
            count: of regions.
            split: whether a run ends where its row does.
        """
        flat = np.ascontiguousarray(ids).ravel()
        begins = np.ones(len(flat), bool)
        begins[1:] = flat[1:] != flat[:-1]
        if split:
            begins[:: ids.shape[1]] = True
        starts = np.flatnonzero(begins)
        owners, lengths = flat[starts], np.diff(starts, append=len(flat))
        order = np.argsort(owners, kind="stable")
        self._starts, self._lengths = starts[order], lengths[order]
        self._ends = np.searchsorted(owners[order], np.arange(count + 1))

    def __getitem__(self, region: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """The flat places where a region's runs start, ascending, and their lengths."""
        own = slice(*self._ends[region : region + 2])
        return self._starts[own], self._lengths[own]


def counts_of(starts: Int[np.ndarray, " k"], lengths: Int[np.ndarray, " k"], total: int) -> list[int]:
    """Pixels outside, inside, outside and so on, beginning with those outside; runs that touch become one.

    Args:
        starts: of the runs, ascending.
        lengths: of them, above 0.
        total: pixels in all.
    """
    if not len(starts):
        return [total]
    ends = starts + lengths
    apart = starts[1:] != ends[:-1]
    first, last = starts[np.append(True, apart)], ends[np.append(apart, True)]
    edges = np.stack([first, last], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=total).tolist()
    return counts[:-1] if counts[-1] == 0 else counts
