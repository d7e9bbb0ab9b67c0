"""From the label values of the benchmarks' own files to class indices (the CAT-Seg preparation's rules, as a table)."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dinov3seg_jax.data.transforms import IGNORED


@functools.cache
def original_ids(benchmark: str) -> tuple[int, ...]:
    """For each class of a benchmark, such as "ade_150", its value in the original annotations."""
    return tuple(_tables()[benchmark]["original_ids"])


def to_classes(values: Int[np.ndarray, "h w"], benchmark: str) -> Int[np.ndarray, "h w"]:
    """Original values as class indices, int32; -1 for every value that is no class."""
    ids = original_ids(benchmark)
    lookup = np.full(max(int(values.max(initial=0)), *ids) + 1, IGNORED, np.int32)
    lookup[list(ids)] = np.arange(len(ids))
    return lookup[values]


def stray_value(values: Int[np.ndarray, "h w"], benchmark: str) -> int | None:
    """A value that a benchmark's annotations never hold, if there is one here: neither a class nor "no label"."""
    ignored = _tables()[benchmark]["ignored_ids"]
    if ignored == "rest":  # all others of 16 bits
        stray = (values < 0) | (values >= 2**16)
    else:
        stray = ~np.isin(values, [*original_ids(benchmark), *ignored])
    return int(values[stray][0]) if stray.any() else None


def ade_values(colours: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """Values of the full ADE20K (2021), which writes them into the red and green of its `*_seg.png`."""
    red, green = (colours[..., channel].astype(np.int32) for channel in (0, 1))
    return red // 10 * 256 + green


@functools.cache
def _tables() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("label_maps.json").read_text(encoding="utf-8"))
