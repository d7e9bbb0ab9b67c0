"""Which formats are asked for, and what goes into them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.errors import UserError, did_you_mean, one_line
from dinov3seg_jax.visualize import Drawing

DEFAULT = ("overlay", "labels", "json")
MinArea = int | str | Mapping[str, int]  # pixels: for every class, or by name


class Outputs(NamedTuple):
    """What is written of a picture.

    Attributes:
        formats: rows of `table.FORMATS`, by name.
        min_area: pixels that a region has at least, by the name of its class; "" is for all others. Smaller regions
            are left out where a format has regions, and only there.
        simplify: how far the borders of polygons may move, in pixels, roughly; 0: not at all.
        folder: whose files are put together later, of what each of its pictures adds; None: a picture is alone.
        drawing: what the overlay looks like; None: as the result says.
    """

    formats: tuple[str, ...] = DEFAULT
    min_area: Mapping[str, int] = {}
    simplify: float = 0.0
    folder: Path | None = None
    drawing: Drawing | None = None

    def least_areas(self, names: Sequence[str]) -> Int[np.ndarray, " t"]:
        """Pixels that a region of each class has at least.

        Raises:
            UserError: a class that has an area of its own is none of these.
        """
        for name in self.min_area:
            if name and name not in names:
                raise UserError(
                    f"min_area names the class '{one_line(name, 60)}', which is none of those that are asked for"
                    f"{did_you_mean(name, names)}; use a name of the list"
                )
        return np.array([self.min_area.get(name, self.min_area.get("", 1)) for name in names], np.int64)

    def question(self) -> dict[str, Any]:
        """What results depend on, by the options that a user knows it by, as plain values."""
        asked = {"--min_area": dict(sorted(self.min_area.items())), "--simplify": self.simplify}
        if "scores" in self.formats:  # for which a picture is seen whole
            asked["--format scores"] = True
        return {word: value for word, value in asked.items() if value}


def parse_min_area(given: MinArea) -> dict[str, int]:
    """Pixels by class; "" is for all others.

    Raises:
        UserError: it is no such thing.
    """
    if isinstance(given, str):
        pairs = [entry.rpartition("=") for entry in _entries(given)]
        areas: dict[str, Any] = {name.strip(): number.strip() for name, _, number in pairs}
        if len(areas) < len(pairs):
            raise UserError(f"min_area is '{one_line(given, 60)}', which names a class twice; name each once")
    else:
        areas = dict(given) if isinstance(given, Mapping) else {"": given}
    checked = {name: _whole(number, given) for name, number in areas.items()}
    return {name: number for name, number in checked.items() if name or number}


def _entries(text: str) -> list[str]:
    """`dog=50,sky=500` at its commas; a name with a comma goes on until its number."""
    entries: list[str] = []
    for word in text.split(","):
        if entries and "=" not in entries[-1] and not entries[-1].strip().isdecimal():
            entries[-1] += f",{word}"
        else:
            entries.append(word)
    return entries


def _whole(number: Any, given: MinArea) -> int:
    try:
        if isinstance(number, bool) or int(number) < 0 or int(number) != float(number):
            raise ValueError
        return int(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"min_area is '{one_line(given, 60)}'; give pixels, as in 50, or by class, as in \"dog=50,sky=500\""
        ) from error


def parse_simplify(given: Any) -> float:
    """Pixels.

    Raises:
        UserError: it is no number of them.
    """
    try:
        tolerance = float(given)
    except (TypeError, ValueError):
        tolerance = -1
    if not 0 <= tolerance < float("inf"):
        raise UserError(f"simplify is '{one_line(given, 60)}'; give pixels that a border may move, as in 1.5, or 0")
    return tolerance
