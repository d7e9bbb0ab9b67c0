"""Painted scenes: an endless procedural data set with exact masks, in place of photographs where none are at hand.

A class is a phrase. Things are "[texture] colour shape" ("red ball", "striped blue ring"), stuff fills the
background. A quarter of the phrases never occurs in training although each of their words, and each pair of their
words, does: whoever segments those has understood the phrase rather than memorised the class.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinov3seg_jax.data.painted_clutter import Clutter, Look, camouflaged
from dinov3seg_jax.data.painted_textures import STUFF, stuff_canvases

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

COLOURS = {
    name: np.asarray(rgb, np.float32)[:, None, None]
    for name, rgb in {
        "red": (212, 36, 40),
        "yellow": (246, 206, 24),
        "green": (18, 164, 70),
        "blue": (36, 72, 214),
        "purple": (150, 48, 178),
    }.items()
}
SHAPES = ("ball", "box", "ring", "cross")
TEXTURES = ("plain", "striped")


@dataclass(frozen=True)
class Thing:
    """What is painted for one class of thing."""

    texture: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        """The phrase, where "plain" has no word."""
        words = (self.texture, self.colour, self.shape)
        return " ".join(word for word in words if word != "plain")


def _is_held_out(texture: int, colour: int, shape: int) -> bool:
    # One shape for each (texture, colour), another one for each texture of a colour, so that no pair of words is held
    # out altogether.
    return shape == (colour + texture) % len(SHAPES)


def _things(held_out: bool) -> tuple[Thing, ...]:
    return tuple(
        Thing(texture, colour, shape)
        for t, texture in enumerate(TEXTURES)
        for c, colour in enumerate(COLOURS)
        for s, shape in enumerate(SHAPES)
        if _is_held_out(t, c, s) == held_out
    )


SEEN_THINGS = _things(held_out=False)
UNSEEN_THINGS = _things(held_out=True)
SEEN_CLASSES = STUFF + tuple(thing.name for thing in SEEN_THINGS)
CLASS_NAMES = SEEN_CLASSES + tuple(thing.name for thing in UNSEEN_THINGS)  # an index means the same in both splits
UNSEEN_CLASSES = frozenset(CLASS_NAMES[len(SEEN_CLASSES) :])

ENDLESS = 2**31 - 1
RIM = 0.025  # width of a frame or rim, relative to the image's side
MAX_TILT = 0.3  # radians; things stand nearly upright, as most do in photographs


class View(NamedTuple):
    """The part of a scene that is painted: a square of `side` pixels out of one of `size`."""

    size: int
    side: int
    top: int
    left: int

    @property
    def rows(self) -> slice:
        """Of the scene."""
        return slice(self.top, self.top + self.side)

    @property
    def columns(self) -> slice:
        """Of the scene."""
        return slice(self.left, self.left + self.side)


class PaintedScenes:
    """A random-access source of scenes, each determined by (seed, split, index) alone.

    A pixel's label is the topmost object whose exact shape covers the pixel's centre, else the stuff behind.
    """

    def __init__(
        self,
        split: Literal["train", "eval"],
        size: int,
        image_size: int,
        seed: int,
        view: int = 0,
        clutter: float = 0.0,
    ):
        """Describe the source; nothing is painted yet.

        Args:
            split: "train" draws seen things; "eval" draws all things with equal chance, from other random numbers than
                "train" whatever the seeds.
            size: number of scenes; 0 for `ENDLESS`.
            image_size: height and width in pixels; objects measure 0.32 to 0.56 of it.
            seed: 0 to 2**64 - 1.
            view: paint only a square of so many pixels, at a random place of each scene: what a random crop of the
                scene would show, at less than its cost; 0 for whole scenes.
            clutter: 0 to 1, how much harder scenes are than plain ones; see `painted_clutter`.
        """
        self._clutter = clutter
        self._split = ("train", "eval").index(split)
        self._size = size or ENDLESS
        self._image_size = image_size
        self._side = min(view or image_size, image_size)
        self._seed = seed
        self._things = SEEN_THINGS if split == "train" else SEEN_THINGS + UNSEEN_THINGS

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Paint scene `index`.

        Returns:
            "image": uint8 [H, W, 3], RGB; "label": int32 [H, W], indices into `CLASS_NAMES`, both of the view.

        Raises:
            IndexError: `index` is not within 0 .. len - 1.
        """
        if not 0 <= index < self._size:
            raise IndexError(f"scene {index} of {self._size}")
        # Philox is keyed by (seed, split) and counts within the index: streams cannot overlap.
        rng, elsewhere, of_clutter = (
            np.random.Generator(np.random.Philox(key=[self._seed, self._split], counter=[0, use, index, 0]))
            for use in (0, 1, 2)
        )
        clutter = Clutter(self._clutter, of_clutter)
        top, left = elsewhere.integers(self._image_size - self._side + 1, size=2)
        view = View(self._image_size, self._side, int(top), int(left))
        canvas, label = _paint_stuff(view, rng)
        for _ in range(rng.integers(2, 5) + clutter.more_things()):
            thing = int(rng.integers(len(self._things)))
            _paint_thing(canvas, label, view, self._things[thing], len(STUFF) + thing, rng, clutter)
        return {"image": _photograph(canvas, view, rng, clutter), "label": label.astype(np.int32)}


# What follows draws the same random numbers whatever the view, so that a view is a cutting of the whole scene.


def _paint_stuff(view: View, rng: np.random.Generator) -> tuple[Array, Bytes]:
    kinds = rng.permutation(len(STUFF))[: rng.integers(2, 4)]
    ground = _stuff_patch(int(kinds[0]), view, rng).copy()
    label = np.full((view.side, view.side), kinds[0], np.uint8)
    for kind in kinds[1:]:
        beyond = _beyond_a_wavy_border(view, rng)
        _put(ground, beyond, _stuff_patch(int(kind), view, rng))
        _put(label, beyond, np.uint8(kind))
    tint = rng.uniform(0.9, 1.1, (3, 1, 1)).astype(np.float32)
    return ground * tint, label


def _stuff_patch(kind: int, view: View, rng: np.random.Generator) -> Bytes:
    canvases = stuff_canvases(view.size)[kind]
    canvas = canvases[rng.integers(len(canvases))]
    top, left = rng.integers(canvas.shape[1] - view.size + 1, size=2)
    return canvas[:, top:, left:][:, view.rows, view.columns]


def _beyond_a_wavy_border(view: View, rng: np.random.Generator) -> NDArray[np.bool_]:
    size, axis = view.size, _centred_axis(view.size)
    down, right = axis[view.rows], axis[view.columns]
    cos, sin = _direction(rng)
    across = right * cos + (down * sin)[:, None]
    if rng.random() < 0.7:
        frequency = np.float32(2 * np.pi * _between(rng, 0.6, 2.0) / size)
        height = np.float32(size * _between(rng, 0.02, 0.07))
        x = right * (-sin * frequency) + np.float32(_between(rng, 0, 2 * np.pi))
        y = (down * (cos * frequency))[:, None]
        across += np.sin(x) * (height * np.cos(y)) + np.cos(x) * (height * np.sin(y))  # height * sin(x + y), faster
    return across > np.float32(size * _between(rng, -0.12, 0.3))


def _paint_thing(
    canvas: Array, label: Bytes, view: View, thing: Thing, index: int, rng: np.random.Generator, clutter: Clutter
) -> None:
    size, look = view.size, clutter.look()
    radius = size * look.scale * _between(rng, 0.16, 0.28)
    place = clutter.place(_between(rng, 0.12, 0.88), _between(rng, 0.12, 0.88), look)
    row, column = size * place[0], size * place[1]
    shadow = int(size * look.scale * _between(rng, 0.006, 0.03))
    reach = radius * CIRCUMRADIUS[thing.shape] + shadow + 2
    rows, columns = _within(view.rows, row, reach), _within(view.columns, column, reach)

    cos, sin = _direction(rng, MAX_TILT)
    down = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(row - view.top)
    across = np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(column - view.left)
    u, v = across * cos + down * sin, down * cos - across * sin
    extent = np.float32(radius), np.float32(look.thickness)
    distance = DISTANCES[thing.shape](u, v, *extent)  # in pixels, negative inside

    coverage = _coverage(distance)
    behind = 1 - coverage
    if shadow:  # falls to the lower right, and fades over as many pixels as it is away
        shift_u, shift_v = shadow * (cos + sin), shadow * (cos - sin)
        lifted = DISTANCES[thing.shape](u - shift_u, v - shift_v, *extent)
        behind *= np.clip(lifted * np.float32(0.5 / shadow) + np.float32(0.55), 0.55, 1)
    window = canvas[:, rows, columns]
    shade = _shade(thing, u, v, distance, size, radius, look)
    colours = _thing_colours(thing, u, v, size, rng)
    if look.camouflage:
        colours = camouflaged(colours, window, look.camouflage)
    window *= behind
    shaded = colours * np.minimum(1 + shade, 1) + np.maximum(shade, 0) * (255 - colours)
    window += coverage * shaded
    _put(label[rows, columns], distance <= 0, np.uint8(index))


def _shade(thing: Thing, u: Array, v: Array, distance: Array, size: int, radius: float, look: Look) -> Array:
    shade = SURFACES[thing.shape](u, v, distance, np.float32(radius), np.float32(RIM * size))
    return shade if look.relief == 1 else shade * np.float32(look.relief)


def _within(seen: slice, centre: float, reach: float) -> slice:
    """What a thing may cover of the rows or columns that are seen, counted from the first of them; maybe nothing."""
    start = min(max(int(centre - reach), seen.start), seen.stop)
    stop = max(min(int(centre + reach) + 2, seen.stop), start)
    return slice(start - seen.start, stop - seen.start)


def _thing_colours(thing: Thing, u: Array, v: Array, size: int, rng: np.random.Generator) -> Array:
    main = COLOURS[thing.colour] + rng.uniform(-12, 12, (3, 1, 1)).astype(np.float32)
    if thing.texture == "plain":
        return main
    darker = thing.colour == "yellow" or rng.random() < 0.5
    other = main * np.float32(0.4) if darker else main * np.float32(0.3) + np.float32(0.7 * 255)
    frequency = np.float32(2 * np.pi / (size * _between(rng, 0.05, 0.085)))
    # Shifted so that the main colour is the wider stripe.
    wave = np.sin(u * frequency + np.float32(_between(rng, 0, 2 * np.pi))) - np.float32(0.2)
    return main + np.clip(wave * np.float32(3) + np.float32(0.5), 0, 1) * (other - main)


def _coverage(distance: Array) -> Array:
    # Antialiasing is in the picture only; the label goes by the pixel's centre.
    return np.clip(np.float32(0.5) - distance, 0, 1)


def _put(target: Bytes, inside: NDArray[np.bool_], values: Bytes | np.uint8) -> None:
    # target[inside] = values, without branches and thus many times as fast.
    target ^= (target ^ values) & -inside.view(np.uint8)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()  # a third of the time of rng.uniform, which shows


def _direction(rng: np.random.Generator, limit: float = np.pi) -> tuple[np.float32, np.float32]:
    angle = _between(rng, -limit, limit)
    return np.float32(np.cos(angle)), np.float32(np.sin(angle))


def _ball(u: Array, v: Array, radius: np.float32, thickness: np.float32) -> Array:
    return np.sqrt(u * u + v * v) - radius


def _box(u: Array, v: Array, radius: np.float32, thickness: np.float32) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.9) * radius


def _cross(u: Array, v: Array, radius: np.float32, thickness: np.float32) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(
        np.maximum(u, v) - np.float32(1.1) * radius, np.minimum(u, v) - np.float32(0.48) * thickness * radius
    )


def _ring(u: Array, v: Array, radius: np.float32, thickness: np.float32) -> Array:
    return np.abs(np.sqrt(u * u + v * v) - np.float32(0.72) * radius) - np.float32(0.38) * thickness * radius


DISTANCES = {"ball": _ball, "box": _box, "cross": _cross, "ring": _ring}
CIRCUMRADIUS = {"ball": 1.0, "box": 1.28, "cross": 1.21, "ring": 1.1}


def _sphere(u: Array, v: Array, distance: Array, radius: np.float32, rim: np.float32) -> Array:
    # Lit from the upper left.
    height = np.sqrt(np.maximum(radius * radius - u * u - v * v, 0))
    lit = (height * np.float32(0.8) - (u + v) * np.float32(0.42)) / radius
    return np.clip(lit * np.float32(1.4) - np.float32(0.9), -0.8, 0.45)


def _crate(u: Array, v: Array, distance: Array, radius: np.float32, rim: np.float32) -> Array:
    # A dark frame and a dark brace from corner to corner.
    return np.float32(-0.95) * np.clip(np.maximum(distance + rim, rim - np.abs(u - v)), 0, 1)


def _light_rim(u: Array, v: Array, distance: Array, radius: np.float32, rim: np.float32) -> Array:
    return np.float32(0.85) * np.clip(distance + rim, 0, 1)


def _lifebuoy(u: Array, v: Array, distance: Array, radius: np.float32, rim: np.float32) -> Array:
    # Four white bands across, and a faint light along the middle.
    light = np.clip(-distance / (np.float32(0.38) * radius), 0, 1) - np.float32(0.7)
    band = np.clip(np.float32(0.15) * radius - np.minimum(np.abs(u), np.abs(v)), 0, 1)
    return np.maximum(light, np.float32(0.85) * band)


# For each shape how its surface is lit: -1 black, 0 its own colour, 1 white. What tells the shapes apart shows in most
# patches and alike in every colour: otherwise it is learned colour by colour, and missed in the held-out ones.
SURFACES = {"ball": _sphere, "box": _crate, "cross": _light_rim, "ring": _lifebuoy}


def _photograph(canvas: Array, view: View, rng: np.random.Generator, clutter: Clutter) -> Bytes:
    """Light the scene from one side and add a camera's contrast and noise."""
    size, axis = view.size, _centred_axis(view.size)
    contrast = _between(rng, 0.78, 1.08)
    across, down = (np.float32(contrast * _between(rng, -0.35, 0.35) / size) for _ in range(2))
    canvas *= axis[view.columns] * across + (axis[view.rows] * down + np.float32(contrast))[:, None]
    light = clutter.light(axis[view.columns] / np.float32(size), axis[view.rows] / np.float32(size))
    if light is not None:
        canvas *= light
    top, left = rng.integers(size, size=2)
    canvas += _grain(size)[:, top:, left:][:, view.rows, view.columns] * np.float32(_between(rng, 2, 7))
    planes = np.empty(canvas.shape, np.uint8)
    np.clip(canvas, 0, 255, out=planes, casting="unsafe")
    return np.stack(list(planes), axis=-1)


@lru_cache(maxsize=4)
def _centred_axis(size: int) -> Array:
    return (np.arange(size) + 0.5 - size / 2).astype(np.float32)


@lru_cache(maxsize=4)
def _grain(size: int) -> Array:
    # Noise is cut at a random place out of one sheet: drawing 3 HW normal numbers would cost more than the painting.
    return np.random.default_rng(0).standard_normal((3, 2 * size, 2 * size), dtype=np.float32)
