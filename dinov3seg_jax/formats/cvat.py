"""CVAT's XML 1.1 for images, with a mask for each region."""

import itertools
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

import numpy as np

from dinov3seg_jax.formats.answer import Answer, hex_color
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.parts import Classes, Lines
from dinov3seg_jax.formats.regions import find_regions
from dinov3seg_jax.formats.runs import Runs, counts_of
from dinov3seg_jax.formats.xml_text import legal, quoted


def part(answer: Answer, outputs: Outputs) -> Iterator[bytes]:
    """The attributes of the picture on one line, and a line for each mask."""
    yield f'name={quoted(answer.file)} width="{answer.width}" height="{answer.height}"'.encode()
    regions = find_regions(np.asarray(answer.labels), np.asarray(answer.confidence))
    runs, boxes = Runs(regions.ids, len(regions.areas), split=True), regions.boxes().tolist()
    for region in regions.kept(outputs.least_areas(answer.names)).tolist():
        (starts, lengths), (left, top, right, bottom) = runs[region], boxes[region]
        rows, columns = np.divmod(starts, answer.width)
        width, height = right - left, bottom - top
        counts = counts_of((rows - top) * width + columns - left, lengths, width * height)
        name, numbers = answer.names[regions.classes[region]], ", ".join(map(str, counts))
        yield (
            f'<mask label={quoted(name)} source="auto" occluded="0" rle="{numbers}"'
            f' left="{left}" top="{top}" width="{width}" height="{height}" z_order="0"/>'
        ).encode()


def join(parts: Iterable[Lines], classes: Classes) -> Iterator[bytes]:
    """The file of a folder."""
    yield b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><labels>\n'
    for name, color in zip(classes.names, classes.colors, strict=True):
        yield (
            f"<label><name>{escape(legal(name))}</name><color>{hex_color(color)}</color><type>mask</type>"
            "<attributes></attributes></label>\n"
        ).encode()
    yield b"</labels></task></meta>\n"
    for number, lines in enumerate(parts):
        masks = iter(lines)
        yield b'<image id="%d" %s>\n' % (number, next(masks).strip())
        yield from itertools.chain.from_iterable((mask.strip(), b"\n") for mask in masks)
        yield b"</image>\n"
    yield b"</annotations>\n"
