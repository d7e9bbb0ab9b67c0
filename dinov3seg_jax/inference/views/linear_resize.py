"""A linear resize along one axis, half-pixel centres, edges held, as the inputs that each output is gathered from.

`models.functions.half_pixel_weights` is the same as a matrix. They stay two because they differ in the last bit: the
centres are rounded in another order, and a matrix made of taps would have 1 - weight rounded once more.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Taps(NamedTuple):
    """For each output of a linear resize along one axis its two inputs, and the weight of the second."""

    first: Int[np.ndarray, "*b n"]
    second: Int[np.ndarray, "*b n"]
    weight: Float[np.ndarray, "*b n"]

    def part(self, start: int, length: int) -> "Taps":
        """Some of the outputs; what is missing at the end repeats the last one."""
        places = np.minimum(np.arange(start, start + length), self.first.shape[-1] - 1)
        return Taps(*(values[..., places] for values in self))


def taps(inputs: int, outputs: int, ratio: float | None = None) -> Taps:
    """Half-pixel centres, edges held; an output is as long as `ratio` inputs, by default `inputs / outputs`."""
    ratio = inputs / outputs if ratio is None else ratio
    centres = np.clip((np.arange(outputs) + 0.5) * ratio - 0.5, 0, inputs - 1)
    first = centres.astype(np.int32)
    return Taps(first, np.minimum(first + 1, inputs - 1), (centres - first).astype(np.float32))
