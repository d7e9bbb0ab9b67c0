"""COCO's JSON: masks as run lengths or as polygons, with areas and boxes."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from dinov3seg_jax.formats.answer import Answer, hex_color
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.formats.outlines import all_outlines
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.parts import Classes, dumped
from dinov3seg_jax.formats.regions import Regions, find_regions
from dinov3seg_jax.formats.rings import one_ring
from dinov3seg_jax.formats.runs import Runs, counts_of

Kind = Literal["regions", "classes", "polygons"]


def annotations(answer: Answer, outputs: Outputs, kind: Kind = "regions") -> Iterator[dict[str, Any]]:
    """One annotation for each region or class, without the ids that a file gives.

    Args:
        answer: a labelled picture.
        outputs: says which regions are left out, and how far polygons are simplified.
        kind: a region's mask, exactly; the mask of all pixels of a class, exactly; or a region's outline.

    Raises:
        UserError: a library is missing.
    """
    if kind == "polygons":
        return _polygons(answer, outputs)
    return _masks(answer, outputs, kind)


def _masks(answer: Answer, outputs: Outputs, kind: Kind) -> Iterator[dict[str, Any]]:
    coder = needed("pycocotools.mask", "formats", "the format coco")
    if kind == "classes":
        regions = _by_class(answer)
        kept = np.flatnonzero(regions.areas)
    else:
        regions = find_regions(np.asarray(answer.labels), np.asarray(answer.confidence))
        kept = regions.kept(outputs.least_areas(answer.names))
    size, total = [answer.height, answer.width], answer.height * answer.width
    runs, means = Runs(regions.ids.T, len(regions.areas)), regions.confidences()
    for region in kept.tolist():
        mask = coder.frPyObjects({"size": size, "counts": counts_of(*runs[region], total)}, *size)
        yield {
            "category_id": int(regions.classes[region]) + 1,
            "segmentation": {"size": size, "counts": mask["counts"].decode()},
            "area": int(regions.areas[region]),
            "bbox": coder.toBbox(mask).tolist(),
            "iscrowd": 0,
            "score": round(float(means[region]), 6),
        }


def _by_class(answer: Answer) -> Regions:
    """Each class as if it were one region, absent ones too."""
    labels = np.asarray(answer.labels).astype(np.int64)
    labelled = labels >= 0
    flat, count = labels[labelled], len(answer.names)
    sums = np.bincount(flat, np.asarray(answer.confidence)[labelled], minlength=count)
    return Regions(labels, np.arange(count), np.bincount(flat, minlength=count), sums)


def _polygons(answer: Answer, outputs: Outputs) -> Iterator[dict[str, Any]]:
    found = all_outlines(answer, outputs, "the format coco_polygons", "formats")
    for shape, index, area, confidence in zip(*found[:3], found.confidences(), strict=True):
        left, top, right, bottom = shape.bounds
        yield {
            "category_id": int(index) + 1,
            "segmentation": [[_short(number) for number in one_ring(shape).ravel().tolist()]],
            "area": int(area),
            "bbox": [_short(number) for number in (left, top, right - left, bottom - top)],
            "iscrowd": 0,
            "score": round(float(confidence), 6),
        }


def _short(number: float) -> float:
    return int(number) if number == int(number) else round(number, 3)


def part(answer: Answer, outputs: Outputs, kind: Kind) -> Iterator[bytes]:
    """A line for the picture, and one for each annotation."""
    yield dumped({"file_name": answer.file, "width": answer.width, "height": answer.height})
    yield from map(dumped, annotations(answer, outputs, kind))


def join(parts: Iterable[Iterable[bytes]], classes: Classes) -> Iterator[bytes]:
    """The file of a folder; its parts are read twice, one after the other.

    Ids of pictures, annotations and categories begin at 1, as COCO's do. A category's id is its label plus 1.
    """
    categories = [
        {"id": index + 1, "name": name, "supercategory": "", "color": hex_color(color)}
        for index, (name, color) in enumerate(zip(classes.names, classes.colors, strict=True))
    ]
    yield b'{"info": {"description": "written by dinov3seg"},\n"categories": ' + dumped(categories) + b',\n"images": ['
    between = b"\n"
    for number, lines in enumerate(parts, 1):
        yield between + dumped({"id": number} | json.loads(next(iter(lines))))
        between = b",\n"
    yield b'\n],\n"annotations": ['
    between, count = b"\n", 0
    for number, lines in enumerate(parts, 1):
        for line in list(lines)[1:]:
            count += 1
            yield between + b'{"id": %d, "image_id": %d, ' % (count, number) + line.strip()[1:]
            between = b",\n"
    yield b"\n]}\n"
