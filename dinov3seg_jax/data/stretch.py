"""From the numbers that a picture holds to bytes: which number becomes black, and which white."""

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Num, UInt8

from dinov3seg_jax.errors import UserError, note

MOST_SAMPLES = 4_000_000  # that percentiles are taken of, on a regular grid
DARK = 1 / 20  # of the range: a picture without a value beyond this is nearly black
PERCENTILES, RANGE, EXTREMES = "percentiles", "range", "extremes"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"

Limits = tuple[float, float]  # what becomes black, and what white


class Stretch(NamedTuple):
    """What becomes black and white, as a user asked for it."""

    kind: str  # PERCENTILES, RANGE or EXTREMES
    low: float = 0
    high: float = 100

    def __str__(self) -> str:
        """As it is written."""
        if self.kind == EXTREMES:
            return "minmax"
        low, high = (repr(number).removesuffix(".0") for number in (self.low, self.high))
        return f"{low}{',' if self.kind == PERCENTILES else ':'}{high}"


class Values(NamedTuple):
    """Numbers of a whole picture, or an idea of them."""

    low: float  # NaN where there are none
    high: float
    some: Num[np.ndarray, " n"]  # on a regular grid


class Part(NamedTuple):
    """Of a picture, as it is stored."""

    values: Num[np.ndarray, "h w c"]
    counting: Bool[np.ndarray, "h w c"]  # which of them are finite, and not what stands for no data
    top: int = 0
    left: int = 0


def parse_stretch(text: str) -> Stretch:
    """`2,98` (percentiles), `minmax` or `0:3000` (values).

    Raises:
        UserError: it is something else.
    """
    words = text.strip()
    if words == "minmax":
        return Stretch(EXTREMES)
    for separator, kind, most in ((",", PERCENTILES, 100.0), (":", RANGE, math.inf)):
        if found := re.fullmatch(rf"\s*({NUMBER})\s*{separator}\s*({NUMBER})\s*", words):
            low, high = map(float, found.groups())
            if low >= high:
                raise UserError(f"--stretch is '{text}', whose first number must be the smaller one, as in 2,98")
            if kind == PERCENTILES and not 0 <= low < high <= most:
                raise UserError(f"--stretch is '{text}', but percentiles lie from 0 to 100; write values as in 0:3000")
            if math.isinf(high - low):
                break
            return Stretch(kind, low, high)
    raise UserError(
        f"--stretch is '{text}'; write percentiles as in 2,98, or minmax, or the values of black and white as in 0:3000"
    )


def black_and_white(
    name: str, kind: np.dtype, bits: int, stretch: Stretch | None, parts: Callable[[], Iterable[Part]], step: int
) -> Limits:
    """Which numbers of a picture become black, and which white; a note is printed if nearly all become black.

    Args:
        name: what a note calls the picture.
        kind: of its numbers.
        bits: of them, if they are fewer than those of `kind`, else 0.
        stretch: what a user asked for.
        parts: its numbers, all bands that are shown together; looked at only where the answer depends on them.
        step: see `grid_step`.
    """
    full = full_range(kind, bits)
    if stretch is not None:
        if stretch.kind == RANGE:
            return stretch.low, stretch.high
        low, high = _stretched_limits(stretch, _gather(parts(), step))
        if low == high:
            note(f"--stretch {stretch} finds nothing to spread in {name}: both are {low:g}; give values, as in 0:3000")
        return low, high
    if full is None:
        values = _gather(parts(), 0)
        limits = _natural_limits(kind, values)
        if limits != (values.low, values.high):
            note_if_dark(name, values.high, limits[1])
        return limits
    if full[1] > 255:
        note_if_dark(name, _highest(parts(), full[1] * DARK), full[1])
    return full


def note_if_dark(
    name: str, highest: float, white: float, mend: str = "--stretch, as in 2,98 or 0:3000, spreads the values there are"
) -> None:
    """Say that a picture is nearly black if its largest number, not 0, is so small beside that of white."""
    if 0 < highest <= white * DARK:
        note(f"no value of {name} exceeds {highest:,.6g} of {white:,.0f}, so that it is nearly black; {mend}")


def full_range(kind: np.dtype, bits: int = 0) -> Limits | None:
    """What is black and white whatever a picture holds; None where that depends on its numbers."""
    if kind == np.bool_:
        return 0, 1
    if kind.kind == "u" and kind.itemsize <= 2:
        return 0, 2 ** (bits or 8 * kind.itemsize) - 1
    return None


def _natural_limits(kind: np.dtype, values: Values) -> Limits:
    """For numbers without a range of their own: those of 0..1 (only floats) or 0..255 are shades, others are spread."""
    if values.low >= 0 and values.high <= 255:
        return 0, 1 if kind.kind == "f" and values.high <= 1 else 255
    return values.low, values.high


def _stretched_limits(stretch: Stretch, values: Values) -> Limits:
    """Of all bands together, so that colours stay what they are."""
    if stretch.kind == EXTREMES or not len(values.some):
        return values.low, values.high
    low, high = np.percentile(values.some, (stretch.low, stretch.high))
    return float(low), float(high)


def _highest(parts: Iterable[Part], most: float) -> float:
    """The largest number if it does not exceed `most`; else 0."""
    highest = 0.0
    for part in parts:
        highest = max(highest, float(part.values.max(where=part.counting, initial=0)))
        if highest > most:
            return 0
    return highest


def _gather(parts: Iterable[Part], step: int) -> Values:
    """Look at all numbers, and keep some of them if `step` says which."""
    low, high, some = math.inf, -math.inf, [np.zeros(0)]
    for part in parts:
        own = part.values[part.counting]
        if own.size:
            low, high = min(low, float(own.min())), max(high, float(own.max()))
        if step:
            grid = np.s_[-part.top % step :: step, -part.left % step :: step]
            some.append(part.values[grid][part.counting[grid]])
    if low > high:  # there is nothing
        low = high = math.nan
    return Values(low, high, np.concatenate(some))


def grid_step(height: int, width: int) -> int:
    """So that the grid has at most about `MOST_SAMPLES` pixels."""
    return max(math.ceil(math.sqrt(height * width / MOST_SAMPLES)), 1)


def to_bytes(values: Num[np.ndarray, "..."], limits: Limits) -> UInt8[np.ndarray, "..."]:
    """Shades; what lies beyond the limits is black or white, and what is not finite is black."""
    kind = values.dtype
    if kind == np.uint8 and limits == (0, 255):
        return values
    if kind.kind == "u" and kind.itemsize <= 2:  # each value once
        return _shades(np.arange(2 ** (8 * kind.itemsize)), limits)[values]
    return _shades(values, limits)


def _shades(values: Num[np.ndarray, "..."], limits: Limits) -> UInt8[np.ndarray, "..."]:
    low, high = limits
    if math.isnan(low):  # of no numbers
        return np.zeros(values.shape, np.uint8)
    numbers = np.where(np.isfinite(values), values, low).astype(np.float64)
    return np.rint((np.clip(numbers, low, high) - low) * 255 / ((high - low) or 1)).astype(np.uint8)
