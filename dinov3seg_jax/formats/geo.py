"""Polygons for a GIS: GeoJSON in longitude and latitude (RFC 7946), GeoPackage in the picture's own system."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinov3seg_jax.errors import note, one_line
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.earth import Ground, ground_of
from dinov3seg_jax.formats.globe import on_globe
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.formats.outlines import Outlines, outlines
from dinov3seg_jax.formats.outputs import Outputs

LAYER = "regions"
COLUMNS: dict[str, type] = {
    "class": object,
    "class_index": np.int32,
    "confidence": np.float64,
    "pixels": np.int64,
    "area_m2": np.float64,
    "color": object,
}
KNOWN_WARNINGS = (  # of the temporary name, and what a note says
    "The filename extension",
    ".*non conformant file extension",
    "'crs' was not provided",
)
IN_PIXELS = "pixels from the top left corner, x to the right and y down, as the picture has no place on Earth"


def geojson(answer: Answer, outputs: Outputs) -> Iterator[bytes]:
    """A FeatureCollection, a line for each region.

    Raises:
        UserError: a library is missing.
    """
    shapely = needed("shapely", "geo", "the format geojson")
    ground = ground_of(answer.place, "the format geojson")
    head: dict[str, Any] = {"type": "FeatureCollection", "name": answer.file}
    if ground is None:
        _say_pixels()
        head["coordinates"] = IN_PIXELS
    yield json.dumps(head, ensure_ascii=False)[:-1].encode(errors="replace") + b', "features": ['
    between = b"\n"
    for found in outlines(answer, outputs, "the format geojson", "geo"):
        shapes = found.shapes
        if ground is not None:
            shapes = on_globe(shapely, shapes, ground, answer)
        geometries = shapely.to_geojson(shapely.orient_polygons(shapes)).tolist()
        for row, geometry in zip(_properties(answer, ground, found), geometries, strict=True):
            properties = json.dumps(row, ensure_ascii=False)
            feature = f'{{"type": "Feature", "properties": {properties}, "geometry": {geometry}}}'
            yield between + feature.encode(errors="replace")
            between = b",\n"
    yield b"\n]}\n"


def write_geojson(answer: Answer, outputs: Outputs, path: Path) -> None:
    """See `geojson`.

    Raises:
        OSError: the file cannot be written.
        UserError: a library is missing.
    """
    with path.open("wb") as file:
        file.writelines(geojson(answer, outputs))


def write_geopackage(answer: Answer, outputs: Outputs, path: Path) -> None:
    """One layer of polygons.

    Raises:
        OSError: the file cannot be written.
        UserError: a library is missing.
    """
    shapely = needed("shapely", "geo", "the format gpkg")
    raw = needed("pyogrio.raw", "geo", "the format gpkg")
    errors = needed("pyogrio.errors", "geo", "the format gpkg")
    for known in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", known)
    ground = ground_of(answer.place, "the format gpkg")
    if ground is None:
        _say_pixels()
    begun = False
    for found in outlines(answer, outputs, "the format gpkg", "geo"):
        if begun and not len(found.areas):
            continue
        shapes = found.shapes if ground is None else shapely.transform(found.shapes, ground.places)
        rows = list(_properties(answer, ground, found))
        kinds = dict(COLUMNS)
        if ground is None or ground.square_metres() is None:
            del kinds["area_m2"]
        columns: dict[str, np.ndarray] = {
            key: np.array([row[key] for row in rows], kind) for key, kind in kinds.items()
        }
        try:
            raw.write(
                path,
                shapely.to_wkb(shapes),
                list(columns.values()),
                list(columns),
                layer=LAYER,
                driver="GPKG",
                geometry_type="Polygon",
                crs=None if ground is None else ground.crs.to_wkt(),
                append=begun,
            )
        except (errors.DataSourceError, errors.DataLayerError, errors.FeatureError, errors.GeometryError) as error:
            raise OSError(f"the GeoPackage cannot be written: {one_line(error)}") from error
        begun = True


def _properties(answer: Answer, ground: Ground | None, found: Outlines) -> Iterator[dict[str, Any]]:
    """What is said of each region."""
    metres = ground.square_metres() if ground else None
    for index, pixels, mean in zip(found.classes.tolist(), found.areas.tolist(), found.confidences(), strict=True):
        yield {
            "class": answer.names[index],
            "class_index": index,
            "confidence": round(float(mean), 6),
            "pixels": pixels,
            **({} if metres is None else {"area_m2": pixels * metres}),
            "color": answer.hex_color(index),
        }


def _say_pixels() -> None:
    note("pictures without a transform and a coordinate system get polygons in pixels, x to the right and y down")
