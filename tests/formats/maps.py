"""Label maps that are hard to write, and answers made of them."""

import numpy as np
import rasterio

from dinov3seg_jax.formats.answer import Answer

RNG = np.random.default_rng(0)
ODD_NAMES = ('red "ball", big', "two\nlines", "Größe & <more>", "草原", "عشب", "घास", "=1+1", "a=b", " x ", "😀")
UTM = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 399960, 0, -0.5, 5800020)}


def rings(size):
    """Squares within squares, of two classes in turn."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    return np.minimum.outer(distance, distance) // 3 % 2


def blobs(height, width, classes, cell=7, seed=0):
    """Patches that touch at edges and at corners."""
    small = np.random.default_rng(seed).integers(0, classes, (-(-height // cell), -(-width // cell)))
    return np.kron(small, np.ones((cell, cell), int))[:height, :width]


MAPS = {
    "one pixel": np.zeros((1, 1), int),
    "one row": np.array([[0, 0, 1, 2, 2, 0, -1, 1, 1]]),
    "one column": np.array([[0, 0, 1, 2, 2, 0, -1, 1, 1]]).T,
    "checkerboard": np.indices((64, 64)).sum(0) % 2,
    "rings": rings(41),
    "one class": np.full((9, 13), 2),
    "no data": np.full((9, 13), -1),
    "corners touch": np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]),
    "hole at the corner": np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]),
    "300 classes": np.arange(300).reshape(15, 20),
    "noise": RNG.integers(-1, 3, (40, 50)),
    "blobs": blobs(60, 80, 5),
}


def names_for(labels):
    """As many names as it takes; the first ones are odd."""
    count = max(int(labels.max()) + 1, 3)
    return tuple(ODD_NAMES[index] if index < len(ODD_NAMES) else f"name {index}" for index in range(count))


def answer(labels, place=None, file="a folder/ä.png", scores=None):
    """A labelled picture; confidence grows from left to right."""
    labels = np.asarray(labels)
    names = names_for(labels)
    confidence = np.broadcast_to(np.linspace(0.25, 0.75, labels.shape[1]), labels.shape).astype(np.float32)
    colors = np.random.default_rng(1).integers(0, 256, (len(names), 3), np.uint8)
    return Answer(file, labels, confidence, names, colors, place or {}, scores)


def painted(shape, corners):
    """The pixels inside of a ring [n, 2] whose corners are corners of pixels, by counting what lies left of them."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for (x, y), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        assert x == x2 or y == y2
        if x == x2:
            low, high = sorted((round(y), round(y2)))
            crossings[low:high, round(x)] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1
