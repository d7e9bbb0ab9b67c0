"""The backgrounds of the painted scenes: large canvases of grass, sky and so on, from which patches are cut.

They are painted once per process and image size, from fixed random numbers, so that a scene costs a copy.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

VARIANTS = 6


def _grass(size: int, unit: float, rng: np.random.Generator) -> Array:
    blades = _noise(size, (5 * unit, 1.2 * unit), rng) + _noise(size, (8 * unit, 2 * unit), rng)
    meadow = _noise(size, (40 * unit, 40 * unit), rng)
    return _mix((64, 84, 28), (150, 158, 70), 0.5 + 0.3 * blades + 0.15 * meadow)


def _sky(size: int, unit: float, rng: np.random.Generator) -> Array:
    height = np.linspace(0, 1, size)[:, None]
    clouds = _noise(size, (24 * unit, 48 * unit), rng) + 0.5 * _noise(size, (10 * unit, 18 * unit), rng)
    blue = _mix((112, 172, 232), (172, 208, 244), height + np.zeros((size, size)))
    return blue + np.clip(0.9 * clouds - 0.2, 0, 1).astype(np.float32) * (np.float32(0.75) * (246 - blue))


def _water(size: int, unit: float, rng: np.random.Generator) -> Array:
    rows = np.arange(size)[:, None] / (5.5 * unit)
    ripples = np.sin(2 * np.pi * rows + 3.5 * _noise(size, (14 * unit, 40 * unit), rng))
    return _mix((14, 66, 88), (92, 168, 180), 0.38 + 0.3 * ripples + 0.12 * _noise(size, (3 * unit, 12 * unit), rng))


def _sand(size: int, unit: float, rng: np.random.Generator) -> Array:
    grains = _noise(size, (1.2 * unit, 1.2 * unit), rng)
    dunes = _noise(size, (30 * unit, 50 * unit), rng)
    return _mix((186, 152, 102), (236, 212, 164), 0.5 + 0.3 * grains + 0.25 * dunes)


def _brick_wall(size: int, unit: float, rng: np.random.Generator) -> Array:
    height, width, joint = 11 * unit, 26 * unit, 2.2 * unit
    rows = np.arange(size)[:, None]
    course = np.floor(rows / height).astype(int)
    shifted = np.arange(size) + 0.5 * width * (course % 2)
    brick = np.floor(shifted / width).astype(int)
    tone = rng.uniform(0, 1, (course.max() + 1, brick.max() + 1))[course, brick]
    bricks = _mix((122, 56, 42), (184, 96, 72), tone + 0.2 * _noise(size, (2 * unit, 2 * unit), rng))
    mortar = (rows % height < joint) | (shifted % width < joint)
    return np.where(mortar, np.float32(192), bricks)


def _wood(size: int, unit: float, rng: np.random.Generator) -> Array:
    plank = 30 * unit
    columns = np.arange(size)[None, :]
    tone = rng.uniform(-0.15, 0.15, int(size / plank) + 1)[np.floor(columns / plank).astype(int)]
    fibres = np.sin(2 * np.pi * columns / (6 * unit) + 5 * _noise(size, (70 * unit, 16 * unit), rng))
    boards = _mix((92, 56, 26), (170, 116, 66), 0.5 + tone + 0.28 * fibres + 0.1 * _noise(size, (9, 1.5), rng))
    return np.where(columns % plank < 1.6 * unit, np.float32(0.45), np.float32(1)) * boards


PAINTERS: dict[str, Callable[[int, float, np.random.Generator], Array]] = {
    "grass": _grass,
    "sky": _sky,
    "water": _water,
    "sand": _sand,
    "brick wall": _brick_wall,
    "wood": _wood,
}
STUFF = tuple(PAINTERS)


@lru_cache(maxsize=4)
def stuff_canvases(image_size: int) -> tuple[tuple[NDArray[np.uint8], ...], ...]:
    """Paint every background in a few variants of different grain.

    Returns:
        For each of `STUFF`, `VARIANTS` canvases: uint8 [3, 2 * image_size, 2 * image_size].
    """
    rng = np.random.default_rng(0)
    units = image_size / 160 * np.linspace(0.85, 1.3, VARIANTS)
    return tuple(
        tuple(np.clip(painter(2 * image_size, unit, rng), 0, 255).astype(np.uint8) for unit in units)
        for painter in PAINTERS.values()
    )


def _mix(dark: tuple[int, int, int], light: tuple[int, int, int], share: NDArray) -> Array:
    low, high = (np.asarray(colour, np.float32)[:, None, None] for colour in (dark, light))
    return low + np.clip(share, 0, 1).astype(np.float32) * (high - low)


def _noise(size: int, period: tuple[float, float], rng: np.random.Generator) -> Array:
    """Smooth noise, float32 [size, size], mostly within -1 .. 1, that varies over `period` (rows, columns) pixels."""
    knots = [int(size / step) + 3 for step in period]
    field = rng.uniform(-1, 1, knots)
    for axis, step in enumerate(period):
        field = np.moveaxis(field, axis, 0)
        position = np.arange(size) / step
        below = position.astype(int)
        fraction = (position - below)[:, None]
        fraction = fraction * fraction * (3 - 2 * fraction)
        field = np.moveaxis(field[below] * (1 - fraction) + field[below + 1] * fraction, 0, axis)
    return (1.4 * field).astype(np.float32)
