"""What makes painted scenes hard: a dial from 0, where colour and texture nearly decide, to 1, where outlines do.

Photographs have crowds of small things that cover each other, things that look like their ground, thin parts, and
light that changes from place to place. A patch by itself does not decide there, which is what refinement is for.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

MORE_THINGS = 10  # at most, at 1, beyond the 2 to 4 of a plain scene
NEAR = 0.25  # of the image's side: how far things of a crowd are from each other, at most
CROWDED = 0.6  # share of things that lie in a crowd, at 1


class Look(NamedTuple):
    """How one thing is painted; the defaults are those of a plain scene."""

    scale: float = 1.0  # of its size
    thickness: float = 1.0  # of what rings and crosses are made of
    relief: float = 1.0  # of its shading, which tells the shapes apart without their outline
    camouflage: float = 0.0  # share of the ground's pattern and colour in it
    beside: tuple[float, float] | None = None  # the place, (row, column) from 0 to 1, that it is in a crowd with


class Clutter:
    """Draws what a scene has more than a plain one, from random numbers of its own: at 0 nothing is drawn."""

    def __init__(self, amount: float, rng: np.random.Generator):
        """Of the amount, from 0 to 1."""
        self._amount, self._rng = amount, rng
        self._places: list[tuple[float, float]] = []

    def more_things(self) -> int:
        """How many things there are beyond those of a plain scene."""
        return int(self._amount * MORE_THINGS * self._draw(0.5, 1.0) + 0.5) if self._amount else 0

    def look(self) -> Look:
        """Of the next thing."""
        if not self._amount:
            return Look()
        crowded = bool(self._places) and self._draw(0, 1) < CROWDED * self._amount
        return Look(
            scale=1 - self._amount * self._draw(0.1, 0.75),
            thickness=1 - self._amount * self._draw(0, 0.7),
            relief=1 - self._amount,
            camouflage=self._amount * self._draw(0, 0.85),
            beside=self._places[self._rng.integers(len(self._places))] if crowded else None,
        )

    def place(self, row: float, column: float, look: Look) -> tuple[float, float]:
        """Where a thing comes to lie that would be at (row, column), from 0 to 1."""
        if look.beside is not None:
            angle, distance = self._draw(0, 2 * np.pi), self._draw(0.3, 1) * NEAR
            row, column = look.beside[0] + distance * np.sin(angle), look.beside[1] + distance * np.cos(angle)
            row, column = (min(max(float(value), 0.05), 0.95) for value in (row, column))
        self._places.append((row, column))
        return row, column

    def light(self, across: Array, down: Array) -> Array | None:
        """A factor for each pixel: the soft edge of a large shadow, and a fall of light; None: light is even.

        Args:
            across, down: coordinates of columns and rows, from -0.5 to 0.5.
        """
        if not self._amount:
            return None
        angle, edge, softness = self._draw(0, 2 * np.pi), self._draw(-0.3, 0.3), self._draw(0.01, 0.1)
        along = across * np.float32(np.cos(angle)) + (down * np.float32(np.sin(angle)))[:, None]
        shadow = np.clip((along - np.float32(edge)) / np.float32(softness) + np.float32(0.5), 0, 1)
        fall = np.float32(self._amount * self._draw(-0.5, 0.5))
        return (1 - np.float32(0.55 * self._amount) * shadow) * (1 + fall * along)

    def _draw(self, low: float, high: float) -> float:
        return low + (high - low) * self._rng.random()


def camouflaged(colours: Array, ground: Array, share: float) -> Array:
    """Colours that take on the pattern of the ground, and some of its colour.

    Args:
        colours: [3, 1, 1] or [3, h, w], 0 to 255.
        ground: [3, h, w], what lies below.
        share: 0 to 1.
    """
    pattern = ground.mean(axis=0) * np.float32(1 / 128)
    patterned = colours * (1 + np.float32(share) * (pattern - 1))
    return patterned + np.float32(0.35 * share) * (ground - patterned)
