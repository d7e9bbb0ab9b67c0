"""The formats by name, and what a user asks of them."""

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dinov3seg_jax.errors import UserError, did_you_mean, one_line
from dinov3seg_jax.formats import coco, cvat, geo, labelstudio, scores, tables, yolo
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.outputs import DEFAULT, MinArea, Outputs, parse_min_area, parse_simplify
from dinov3seg_jax.formats.parts import Join, Part

Write = Callable[[Answer, Outputs, Path], None]


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to write a labelled picture.

    Attributes:
        holds: what is in it, for help and docs.
        suffixes: of a picture's own file, after the stem; the second one where the picture has a place on Earth.
        write: writes that file; None where whoever has the picture does.
        joined: files of a whole folder by name, each made of the parts of its pictures.
        part: what a picture adds to them.
        libraries: modules that it needs.
        extra: of this package, which brings them.
        is_ours: whether a file of that name is one that this program wrote; None where nobody else has such names.
        labels_only: whether it needs no confidence.
        streams: whether it takes a picture in strips; if not, the whole label map is in memory.
    """

    holds: str
    suffixes: tuple[str, ...] = ()
    write: Write | None = None
    joined: Mapping[str, Join] = dataclasses.field(default_factory=dict)
    part: Part | None = None
    libraries: tuple[str, ...] = ()
    extra: str = ""
    is_ours: Callable[[Path], bool] | None = None
    labels_only: bool = False
    streams: bool = False

    def suffix(self, answer: Answer) -> str:
        """Of a picture's own file."""
        return self.suffixes[-1 if answer.place else 0]


def is_summary(path: Path) -> bool:
    """Whether a file holds what this program says of a picture.

    Raises:
        OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(found, dict) and {"names", "classes"} <= found.keys()


def _write_numpy(answer: Answer, outputs: Outputs, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.asarray(answer.labels))


def _coco(kind: coco.Kind) -> Part:
    return functools.partial(coco.part, kind=kind)


_GEO = ("rasterio", "shapely", "pyogrio")
_OUTLINES = ("rasterio", "shapely")
FORMATS: Mapping[str, Format] = {
    "overlay": Format(
        "the picture tinted by class, with a legend (PNG)", ("_overlay.png",), labels_only=True, streams=True
    ),
    "labels": Format(
        "the index of each pixel's class (PNG or GeoTIFF)",
        ("_labels.png", "_labels.tif"),
        labels_only=True,
        streams=True,
    ),
    "json": Format(
        "area and mean confidence of each class", (".json",), is_ours=is_summary, labels_only=True, streams=True
    ),
    "coco": Format(
        "COCO: a mask for each region",
        joined={"coco.json": coco.join},
        part=_coco("regions"),
        libraries=("pycocotools",),
        extra="formats",
    ),
    "coco_polygons": Format(
        "COCO: a polygon for each region",
        joined={"coco_polygons.json": coco.join},
        part=_coco("polygons"),
        libraries=_OUTLINES,
        extra="formats",
    ),
    "coco_classes": Format(
        "COCO: a mask for each class, as COCO-Stuff has",
        joined={"coco_classes.json": coco.join},
        part=_coco("classes"),
        libraries=("pycocotools",),
        extra="formats",
    ),
    "geojson": Format(
        "polygons in longitude and latitude",
        ("_regions.geojson",),
        geo.write_geojson,
        libraries=_OUTLINES,
        extra="geo",
        streams=True,
    ),
    "gpkg": Format(
        "GeoPackage: polygons in the picture's coordinate system",
        ("_regions.gpkg",),
        geo.write_geopackage,
        libraries=_GEO,
        extra="geo",
        streams=True,
    ),
    "yolo": Format(
        "Ultralytics' text for segmentation, and data.yaml",
        (".txt",),
        yolo.write,
        joined={"data.yaml": yolo.join},
        libraries=_OUTLINES,
        extra="formats",
        is_ours=yolo.is_ours,
        labels_only=True,
        streams=True,
    ),
    "labelstudio": Format(
        "Label Studio's tasks with brush strokes, and the interface for them",
        joined={"labelstudio.json": labelstudio.join, "labelstudio.xml": labelstudio.interface},
        part=labelstudio.part,
    ),
    "cvat": Format("CVAT's XML 1.1 for images, with masks", joined={"cvat.xml": cvat.join}, part=cvat.part),
    "scores": Format(
        "the score of every class in every pixel (NumPy, or GeoTIFF)",
        ("_scores.npz", "_scores.tif"),
        scores.write_scores,
    ),
    "numpy": Format("the label map as an array", ("_labels.npy",), _write_numpy, labels_only=True, streams=True),
    "csv": Format(
        "areas, a row for each picture and class",
        joined={"summary.csv": tables.join_csv},
        part=tables.part,
        streams=True,
    ),
    "parquet": Format(
        "the same rows as Parquet",
        joined={"summary.parquet": tables.join_parquet},
        part=tables.part,
        libraries=("pyarrow",),
        extra="tables",
        streams=True,
    ),
}


def asked(
    formats: str | Sequence[str] = DEFAULT,
    min_area: MinArea = 0,
    simplify: float | str = 0.0,
    folder: Path | None = None,
) -> Outputs:
    """What a user asks for, checked.

    Args:
        formats: names of `FORMATS`, as in "overlay,coco" or ("overlay", "coco").
        min_area: pixels that a region has at least: 50, or by class, {"dog": 50, "sky": 500} or "dog=50,sky=500"; a
            number without a name is for all other classes.
        simplify: how far the borders of polygons may move, in pixels; 0: not at all.
        folder: see `Outputs`.

    Raises:
        UserError: a value cannot be used, or a library is missing that a format needs.
    """
    return Outputs(parse_formats(formats), parse_min_area(min_area), parse_simplify(simplify), folder)


def parse_formats(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of formats, each once, whose libraries are installed.

    Raises:
        UserError: there is no such format, or a library is missing.
    """
    words = given.split(",") if isinstance(given, str) else list(given)
    names = tuple(dict.fromkeys(word.strip().lower() for word in words if isinstance(word, str) and word.strip()))
    if not names or not all(isinstance(word, str) for word in words):
        raise UserError(f"'{one_line(given, 60)}' names no format; choose from {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            raise UserError(
                f"there is no format '{one_line(name, 60)}'{did_you_mean(name, FORMATS)}; choose from "
                f"{', '.join(FORMATS)}"
            )
        if (library := missing_library(name)) is not None:
            raise UserError(
                f"the format {name} needs {library}, which is not installed; install the extra "
                f"'{FORMATS[name].extra}', as in pip install 'dinov3seg_jax[{FORMATS[name].extra}]'"
            )
    return names


def missing_library(name: str) -> str | None:
    """The first library that a format needs and that is not installed."""
    return next((library for library in FORMATS[name].libraries if importlib.util.find_spec(library) is None), None)
