"""Ultralytics' text for segmentation: a line for each region, its class and its corners as shares of the picture."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.outlines import outlines
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.parts import Classes, Lines
from dinov3seg_jax.formats.rings import one_ring


def lines(answer: Answer, outputs: Outputs) -> Iterator[str]:
    """The lines of a picture's file.

    Raises:
        UserError: a library is missing.
    """
    for found in outlines(answer, outputs, "the format yolo", "formats"):
        for shape, index in zip(found.shapes, found.classes, strict=True):
            corners = (one_ring(shape) / (answer.width, answer.height)).ravel().tolist()
            yield " ".join([str(index), *(f"{corner:.6f}".rstrip("0").rstrip(".") for corner in corners)])


def write(answer: Answer, outputs: Outputs, path: Path) -> None:
    """See `lines`.

    Raises:
        OSError: the file cannot be written.
        UserError: a library is missing.
    """
    with path.open("w", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in lines(answer, outputs))


def is_ours(path: Path) -> bool:
    """Whether a text begins as `lines` do, with a class and at least three corners; an empty one may be anybody's."""
    with path.open(errors="replace") as file:
        words = file.readline().split()
    if not words:
        return True
    try:
        return int(words[0]) >= 0 and len(words) >= 7 and all(0 <= float(word) <= 1 for word in words[1:])
    except ValueError:
        return False


def join(parts: Iterable[Lines], classes: Classes) -> Iterator[bytes]:
    """data.yaml, for a folder with the pictures in `images` and these texts in `labels`."""
    content = {"train": "images", "val": "images", "names": dict(enumerate(classes.names))}
    yield yaml.safe_dump(content, allow_unicode=True, sort_keys=False).encode(errors="replace")
