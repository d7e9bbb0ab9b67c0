"""Augmentation: resize, crop, colours, flip, padding, and which classes an example is trained on.

All functions take and return arrays, and draw from the generator they are given: images are uint8 [H, W, 3] RGB, labels
int32 [H, W] with -1 where ignored. The recipe is CAT-Seg's, whose parts come from Detectron2 and SSD.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
Label = NDArray[np.int32]

IGNORED = -1
PAD_COLOUR = 128
LARGEST_SHARE = 0.75
LONGEST_FOR_SHORT = 1333 / 384  # very long images are made smaller still


def resize_short_side(image: Picture, label: Label, short_side: int) -> tuple[Picture, Label]:
    """Resize to a short side in pixels: the image with antialiased bilinear weights, the label to the nearest.

    The long side is at most `LONGEST_FOR_SHORT` times `short_side`; see `short_side_size`.
    """
    size = short_side_size(label.shape[0], label.shape[1], short_side, short_side * LONGEST_FOR_SHORT)
    if size == label.shape:
        return image, label
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    return resized, np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))


def short_side_size(height: int, width: int, short_side: int, longest: float) -> tuple[int, int]:
    """Height and width in pixels, rounded, with a short side of `short_side`.

    Where the long side would exceed `longest`, both sides shrink. This is Detectron2's rule, which the DINOv3
    repository's linear evaluation follows too; torchvision's cuts the long side (see `inference.zero_shot`).
    """
    scale = min(short_side / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def random_crop(
    image: Picture, label: Label, size: int, rng: np.random.Generator, tries: int = 1
) -> tuple[Picture, Label]:
    """Cut out a square of `size` pixels at a random place; a side that is shorter stays whole.

    With several tries, places are drawn until a crop is varied (see `is_varied`); the last one is taken as it is.
    """
    height, width = label.shape
    for tried in range(1, tries + 1):
        top = int(rng.integers(max(0, height - size) + 1))
        left = int(rng.integers(max(0, width - size) + 1))
        cropped = label[top : top + size, left : left + size]
        if tried == tries or is_varied(cropped):
            break
    return image[top : top + size, left : left + size], cropped


def is_varied(label: Label) -> bool:
    """Whether there are at least two classes, and none on `LARGEST_SHARE` of the labelled pixels."""
    pixels = np.bincount(label[label != IGNORED])
    return bool(np.count_nonzero(pixels) > 1 and pixels.max() < LARGEST_SHARE * pixels.sum())


def pad(image: Picture, label: Label, size: int) -> tuple[Picture, Label]:
    """Fill up to `size` x `size` pixels at the right and bottom: with `PAD_COLOUR`, and with `IGNORED`."""
    bottom, right = size - label.shape[0], size - label.shape[1]
    if not bottom and not right:
        return image, label
    return (
        np.pad(image, ((0, bottom), (0, right), (0, 0)), constant_values=PAD_COLOUR),
        np.pad(label, ((0, bottom), (0, right)), constant_values=IGNORED),
    )


def random_flip(image: Picture, label: Label, rng: np.random.Generator) -> tuple[Picture, Label]:
    """Mirror left and right with probability 1/2."""
    if rng.random() < 0.5:
        return image[:, ::-1], label[:, ::-1]
    return image, label


def color_jitter(image: Picture, rng: np.random.Generator) -> Picture:
    """SSD's change of brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness comes first; contrast before or after saturation and hue. Each result is clipped and cut to bytes.
    """
    if rng.random() < 0.5:
        image = change_levels(image, 1.0, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _random_contrast(image, rng)
    if rng.random() < 0.5:
        image = change_saturation(image, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        image = change_hue(image, int(rng.integers(-18, 19)))
    return image if contrast_first else _random_contrast(image, rng)


def _random_contrast(image: Picture, rng: np.random.Generator) -> Picture:
    return change_levels(image, rng.uniform(0.5, 1.5), 0.0) if rng.random() < 0.5 else image


def change_levels(image: Picture, gain: float, offset: float) -> Picture:
    """`gain` * bytes + `offset`, clipped to 0 .. 255 and cut to bytes; any shape."""
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(offset), 0, 255).astype(np.uint8)
    return table[image]


def change_saturation(image: Picture, gain: float) -> Picture:
    """Multiply the saturation of an RGB image in HSV of bytes."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb(hue, change_levels(saturation, gain, 0.0), value)


def change_hue(image: Picture, degrees: int) -> Picture:
    """Turn the hue of an RGB image by `degrees` of 180."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb(((hue.astype(np.int16) + degrees) % 180).astype(np.uint8), saturation, value)


def rgb_to_hsv(image: Picture) -> tuple[Picture, Picture, Picture]:
    """Convert to hue 0 .. 179 (half degrees), saturation and value 0 .. 255, as OpenCV does for bytes.

    Args:
        image: uint8 [..., 3], RGB.

    Returns:
        Three arrays uint8 [...], rounded to the nearest integer.
    """
    red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    saturation = np.float32(255) * chroma / np.maximum(value, 1)
    sextant = np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sextant = np.where(value == red, green - blue, sextant)  # which of several largest counts first: red, then green
    hue = np.rint(np.float32(30) * sextant / np.maximum(chroma, 1))
    hue += np.float32(180) * (hue < 0)
    return hue.astype(np.uint8), np.rint(saturation).astype(np.uint8), value.astype(np.uint8)


def hsv_to_rgb(hue: Picture, saturation: Picture, value: Picture) -> Picture:
    """Inverse of `rgb_to_hsv` up to rounding.

    Args:
        hue: uint8 [...], 0 .. 179.
        saturation: uint8 [...].
        value: uint8 [...].

    Returns:
        uint8 [..., 3], RGB, rounded to the nearest integer.
    """
    level = value.astype(np.float32)
    chroma = level * saturation * np.float32(1 / 255)
    image = np.empty((*hue.shape, 3), np.uint8)
    for channel, distances in enumerate(_CHROMA_LOST):
        image[..., channel] = np.rint(level - chroma * distances[hue])
    return image


def _chroma_lost() -> NDArray[np.float32]:
    # For each channel and hue, how much of the chroma it lacks: none within 60 degrees of the channel's own hue, all of
    # it from 120 degrees on, linear between.
    away = np.abs((np.arange(180) - np.array([[0], [60], [120]]) + 90) % 180 - 90)
    return np.clip(away / 30 - 1, 0, 1).astype(np.float32)


_CHROMA_LOST = _chroma_lost()


def sample_classes(
    label: Label,
    classes_per_image: int,
    class_count: int,
    rng: np.random.Generator,
    own: NDArray[np.int32] | None = None,
) -> tuple[NDArray[np.int32], Label]:
    """Choose the classes an example is trained on: those present and a random draw of others.

    Args:
        label: int32 [H, W], indices 0 .. class_count - 1, -1 where ignored.
        classes_per_image: how many to choose, K; at most `class_count` are; 0 for all of them, in order.
        class_count: number of classes.
        rng: source of the draw and of the order.
        own: the classes that the others are drawn from; those that are missing then to K are drawn from all. Default:
            all.

    Returns:
        The classes, int32 [K], all different; and the label, int32 [H, W], as positions in that list. Where more than K
        classes are present, K of them are chosen and the pixels of the others become -1.
    """
    if classes_per_image == 0:
        return np.arange(class_count, dtype=np.int32), label
    pixels = np.bincount(label.ravel() + 1, minlength=class_count + 1)[1:]
    # A random key for each class, the present ones' before the others'; then shuffled, to hide which are present.
    key = rng.random(class_count) + (pixels == 0)
    if own is not None:
        key += ~np.isin(np.arange(class_count), own)
    first = np.argsort(key)[:classes_per_image]
    class_ids = rng.permutation(first).astype(np.int32)
    position = np.full(class_count + 1, IGNORED, np.int32)  # its last entry is that of label -1
    position[class_ids] = np.arange(len(class_ids))
    return class_ids, position[label]
