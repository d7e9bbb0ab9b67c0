"""Label Studio's import: a task for each picture, whose predictions are brush strokes, and the labelling interface."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.formats.answer import Answer, hex_color
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.parts import Classes, Lines, dumped
from dinov3seg_jax.formats.regions import find_regions
from dinov3seg_jax.formats.runs import Runs, counts_of
from dinov3seg_jax.formats.xml_text import legal, quoted

LOCAL_FILES = "/data/local-files/?d="  # what Label Studio calls the folder that it serves pictures from
CONTROL, OBJECT = "label", "image"  # the names of the interface's parts
CHANNELS = 4  # of the picture that a stroke is drawn in, red to alpha
INSIDE = 255
VALUE_BITS, SIZES = 8, (4, 8, 12, 16)  # bits of a value, and of the lengths that a run may have


def part(answer: Answer, outputs: Outputs) -> Iterator[bytes]:
    """The task of a picture."""
    regions = find_regions(np.asarray(answer.labels), np.asarray(answer.confidence))
    runs, means = Runs(regions.ids, len(regions.areas)), regions.confidences()
    strokes: list[dict[str, Any]] = []
    for region in regions.kept(outputs.least_areas(answer.names)).tolist():
        name = answer.names[regions.classes[region]]
        counts = np.array(counts_of(*runs[region], answer.width * answer.height)) * CHANNELS
        strokes.append(
            {
                "id": f"region{len(strokes)}",
                "type": "brushlabels",
                "from_name": CONTROL,
                "to_name": OBJECT,
                "original_width": answer.width,
                "original_height": answer.height,
                "image_rotation": 0,
                "score": round(float(means[region]), 6),
                "value": {
                    "format": "rle",
                    "rle": brush(counts),
                    "brushlabels": [legal(name)],
                },
            }
        )
    prediction = {"model_version": "dinov3seg", "result": strokes}
    yield dumped({"data": {OBJECT: LOCAL_FILES + quote(answer.file, errors="replace")}, "predictions": [prediction]})


def brush(counts: Int[np.ndarray, " k"]) -> list[int]:
    """The bytes of a stroke.

    They begin with the number of values (32 bits), the bits of a value less 1 (5) and of the four kinds of lengths less
    1 (4 each). Each run has a 1, the kind of its length (2 bits), its length less 1, and its value.

    Args:
        counts: values outside, inside, outside and so on, as of `counts_of`.
    """
    bits = [f"{int(np.sum(counts)):032b}", f"{VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for place, count in enumerate(counts.tolist()):
        longest, rest = divmod(count, 2 ** SIZES[-1])
        value = INSIDE * (place % 2)
        bits.append(_run(2 ** SIZES[-1], value) * longest + (_run(rest, value) if rest else ""))
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()


@functools.lru_cache(maxsize=10_000)
def _run(length: int, value: int) -> str:
    kind = next(kind for kind, size in enumerate(SIZES) if length <= 2**size)
    return f"1{kind:02b}{length - 1:0{SIZES[kind]}b}{value:0{VALUE_BITS}b}"


def join(parts: Iterable[Lines], classes: Classes) -> Iterator[bytes]:
    """The tasks of a folder."""
    yield b"["
    between = b"\n"
    for lines in parts:
        for line in lines:
            yield between + line.strip()
            between = b",\n"
    yield b"\n]\n"


def interface(parts: Iterable[Lines], classes: Classes) -> Iterator[bytes]:
    """The labelling interface that the tasks belong to."""
    yield f'<View>\n  <Image name="{OBJECT}" value="${OBJECT}" zoom="true"/>\n'.encode()
    yield f'  <BrushLabels name="{CONTROL}" toName="{OBJECT}">\n'.encode()
    for name, color in zip(classes.names, classes.colors, strict=True):
        yield f'    <Label value={quoted(name)} background="{hex_color(color)}"/>\n'.encode()
    yield b"  </BrushLabels>\n</View>\n"
