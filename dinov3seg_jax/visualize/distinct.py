"""Colours as easy to tell apart as their number allows, for all eyes or for colour-blind ones."""

import functools

import numpy as np

MAX_COLORS = 4096
COLORBLIND_ENDS = 20  # among so many, no two are nearer for any eyes than two of the seven that Okabe and Ito chose

# Okabe and Ito, "Color Universal Design" (2008), without black, which vanishes in pictures.
_OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_CHOSEN = 64  # colours for colour-blind eyes; where there are more, nobody tells them apart
# What linear RGB is to eyes without red, green or blue cones: Machado, Oliveira and Fernandes, "A Physiologically-based
# Model for Simulation of Color Vision Deficiency" (2009), severity 1.
_EYES = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)


def palette(count: int) -> np.ndarray:
    """Colours that are as easy to tell apart as `count` allows, the same on every call.

    Each colour is the one farthest, in CIELAB, from those before it; so `palette(n)` begins with `palette(m)` for
    m < n. Colours near black, white and grey are not used: they vanish in pictures. Libraries' palettes are shorter
    than class lists, or change with their version; a class has one colour in all results of a folder.

    Args:
        count: 0..`MAX_COLORS`.

    Returns:
        uint8 [count, 3], RGB, all different.

    Raises:
        ValueError: `count` is out of range.
    """
    return _checked(count, _palette)


def colorblind(count: int) -> np.ndarray:
    """The same for eyes without red, green or blue cones, too: the farthest is it for the eyes that see least of it.

    It begins with the seven colours of Okabe and Ito. From `COLORBLIND_ENDS` on, some are alike.

    Args:
        count: 0..`MAX_COLORS`.

    Returns:
        uint8 [count, 3], RGB, all different.

    Raises:
        ValueError: `count` is out of range.
    """
    return _checked(count, _colorblind)


def lab(colors: np.ndarray) -> np.ndarray:
    """uint8 sRGB [N, 3] to float64 CIELAB [N, 3] under daylight (D65)."""
    return _lab(_linear(colors))


def seen_by_all(colors: np.ndarray) -> np.ndarray:
    """uint8 sRGB [N, 3] to float64 CIELAB [4, N, 3]: as it is, and without red, green and blue cones."""
    linear = _linear(colors)
    return np.stack([_lab(linear), *(_lab(np.clip(linear @ eyes.T, 0, 1)) for eyes in _EYES)])


def _checked(count: int, make: "functools._lru_cache_wrapper[np.ndarray]") -> np.ndarray:
    if not 0 <= count <= MAX_COLORS:
        raise ValueError(f"a palette holds 0 to {MAX_COLORS} colours, not {count}")
    return make(count).copy()


@functools.lru_cache(maxsize=8)
def _palette(count: int) -> np.ndarray:
    colors = _cube()
    seen = lab(colors)
    chroma = np.hypot(seen[:, 1], seen[:, 2])
    clear = (seen[:, 0] > 38) & (seen[:, 0] < 90) & (chroma > 24) & (chroma < 88)
    colors, seen = colors[clear], seen[clear]
    warm_red = int(((seen - (58, 62, 38)) ** 2).sum(axis=-1).argmin())
    return colors[_farthest(seen[None], [warm_red], count)]


@functools.lru_cache(maxsize=8)
def _colorblind(count: int) -> np.ndarray:
    colors = _cube()
    seen = lab(colors)
    clear = (seen[:, 0] > 25) & (seen[:, 0] < 93) & (np.hypot(seen[:, 1], seen[:, 2]) > 14)
    colors = np.concatenate([np.array(_OKABE_ITO, np.uint8), colors[clear]])
    chosen = _farthest(seen_by_all(colors), list(range(len(_OKABE_ITO))), min(count, _CHOSEN))
    others = np.setdiff1d(np.arange(len(colors)), chosen)
    return colors[[*chosen, *np.random.default_rng(0).permutation(others)[: count - len(chosen)]]]


def _cube() -> np.ndarray:
    levels = np.arange(8, 256, 9, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)


def _farthest(seen: np.ndarray, first: list[int], count: int) -> list[int]:
    """Indices of `count` colours: the first ones, then each the farthest from those before it, for the worst eyes.

    Args:
        seen: CIELAB [eyes, N, 3].
        first: indices that begin.
        count: of indices, at most N.
    """
    distance = np.full(seen.shape[1], np.inf)
    chosen: list[int] = []
    for place in range(count):
        chosen.append(first[place] if place < len(first) else int(distance.argmax()))
        distance = np.minimum(distance, ((seen - seen[:, chosen[-1:]]) ** 2).sum(axis=-1).min(axis=0))
    return chosen


def _linear(colors: np.ndarray) -> np.ndarray:
    scaled = colors / 255
    return np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
