"""GeoJSON and GeoPackage, read back by pyogrio and by hand."""

import json
import warnings

import numpy as np
import pytest
import rasterio
from rasterio import features, warp

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats import geo, outlines
from dinov3seg_jax.formats.earth import ground_of, pixel_square_metres
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.formats.writing import write_formats
from tests.formats.maps import MAPS, UTM, answer, blobs

shapely = pytest.importorskip("shapely")
raw = pytest.importorskip("pyogrio.raw")
from pyogrio import read_info  # noqa: E402


def written(given, folder, name, **options):
    (path,) = write_formats(given, asked(name, **options), folder, "a")
    return path


def read(path):
    """Field names, columns and shapes."""
    meta, _, shapes, columns = raw.read(path)
    return dict(zip(meta["fields"], columns, strict=True)), shapely.from_wkb(shapes), meta


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("checkerboard", "no data")])
@pytest.mark.parametrize("place", [{}, UTM])
def test_a_geopackage_is_the_label_map(tmp_path, name, place):
    labels = MAPS[name]
    given = answer(labels, place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = written(given, tmp_path, "gpkg")
    rows, shapes, meta = read(path)
    transform = place.get("transform", rasterio.Affine.identity())
    pairs = zip(shapes, rows["class_index"], strict=True)
    painted = features.rasterize(pairs, labels.shape, fill=-1, transform=transform, dtype="int32")
    np.testing.assert_array_equal(painted, labels)
    pixel = 0.25 if place else 1
    assert shapely.area(shapes) == pytest.approx(rows["pixels"] * pixel)
    assert rows["class"].tolist() == [given.names[index] for index in rows["class_index"]]
    assert rows["color"].tolist() == [given.hex_color(index) for index in rows["class_index"]]
    for shape, confidence in zip(shapes, rows["confidence"], strict=True):
        mask = features.rasterize([shape], labels.shape, transform=transform) == 1
        assert confidence == pytest.approx(given.confidence[mask].mean(), abs=1e-6)
    if place:
        assert rasterio.CRS.from_user_input(meta["crs"]) == rasterio.CRS.from_epsg(32633)
        np.testing.assert_allclose(rows["area_m2"], rows["pixels"] * 0.25)
    else:
        assert meta["crs"] is None or "Undefined" in meta["crs"]
    assert read_info(path)["geometry_type"] == "Polygon"


@pytest.mark.parametrize("name", ["gpkg", "geojson"])
@pytest.mark.parametrize("place", [{}, UTM])
def test_a_picture_without_data(tmp_path, name, place):
    path = written(answer(MAPS["no data"], place), tmp_path, name)
    info = read_info(path)
    assert info["features"] == 0
    if name == "gpkg":
        assert {"class", "class_index", "confidence", "pixels", "color"} <= set(info["fields"])


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3035", "EPSG:4326", "EPSG:3857"])
def test_geojson_lies_where_the_picture_does(tmp_path, crs):
    """Painted at a tenth of a pixel in the picture's own system."""
    labels = MAPS["blobs"]
    if crs == "EPSG:4326":
        transform = rasterio.Affine(1e-5, 0, 13.5, 0, -1e-5, 52.3)
    else:
        x, y = (values[0] for values in warp.transform("EPSG:4326", crs, [13.5], [52.3]))
        transform = rasterio.Affine(30, 2, x, 1, -30, y)
    given = answer(labels, {"crs": crs, "transform": transform})
    content = json.loads(written(given, tmp_path, "geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    assert "coordinates" not in content
    assert "crs" not in content  # RFC 7946 knows but one
    scaled = rasterio.Affine(*(number / (1 if place % 3 == 2 else 10) for place, number in enumerate(transform[:6])))
    shapes = []
    for row in content["features"]:
        assert shapely.geometry.shape(row["geometry"]).exterior.is_ccw
        shapes.append((warp.transform_geom("EPSG:4326", crs, row["geometry"]), row["properties"]["class_index"]))
    painted = features.rasterize(shapes, (600, 800), fill=-1, transform=scaled, dtype="int32")
    np.testing.assert_array_equal(painted, np.kron(labels, np.ones((10, 10), int)))
    assert sum(row["properties"]["pixels"] for row in content["features"]) == labels.size


def test_long_lines_stay_straight(tmp_path):
    """A scene of 100 km in UTM: its middle line is 600 m away from the straight line between its ends in degrees."""
    transform = rasterio.Affine(10, 0, 300_000, 0, -10, 6_900_000)
    labels = np.zeros((200, 10_000), np.int8)
    labels[100:] = 1
    given = answer(labels, {"crs": "EPSG:32633", "transform": transform})
    content = json.loads(written(given, tmp_path, "geojson").read_text(encoding="utf-8"))
    rows = [warp.transform_geom("EPSG:4326", "EPSG:32633", row["geometry"]) for row in content["features"]]
    for row, top, bottom in zip(rows, (0, 1000), (1000, 2000), strict=True):
        exact = shapely.box(300_000, 6_900_000 - bottom, 400_000, 6_900_000 - top)
        assert shapely.hausdorff_distance(shapely.segmentize(exact, 500), shapely.geometry.shape(row)) < 260
        difference = shapely.symmetric_difference(exact, shapely.geometry.shape(row)).area
        assert difference / 200_000 < 1  # metres along the border, a tenth of a pixel


def test_polygons_across_180_degrees_are_cut(tmp_path):
    """Fiji's zone; west of the line and east of it."""
    transform = rasterio.Affine(100, 0, 810_000, 0, -100, 8_000_000)
    given = answer(np.zeros((20, 400), int), {"crs": "EPSG:32760", "transform": transform})
    (row,) = json.loads(written(given, tmp_path, "geojson").read_text(encoding="utf-8"))["features"]
    assert row["geometry"]["type"] == "MultiPolygon"
    boxes = sorted(shapely.geometry.shape(row["geometry"]).geoms, key=lambda part: part.bounds)
    assert boxes[0].bounds[0] == -180
    assert boxes[0].bounds[2] < -179.5
    assert boxes[1].bounds[2] == 180
    assert boxes[1].bounds[0] > 179.5


def test_longitudes_beyond_180_come_back(tmp_path):
    given = answer(np.array([[0, 0, 1]]), {"crs": "EPSG:4326", "transform": rasterio.Affine(60, 0, 120, 0, -10, 5)})
    first, second = json.loads(written(given, tmp_path, "geojson").read_text(encoding="utf-8"))["features"]
    assert shapely.geometry.shape(first["geometry"]).bounds == (-180, -5, 180, 5)
    assert shapely.geometry.shape(first["geometry"]).area == 1200
    assert shapely.geometry.shape(second["geometry"]).bounds == (-120, -5, -60, 5)


def test_a_pole(tmp_path):
    transform = rasterio.Affine(1000, 0, -5000, 0, -1000, 5000)
    given = answer(np.zeros((10, 10), int), {"crs": "EPSG:3413", "transform": transform})
    with pytest.raises(UserError, match="a region around a pole, which GeoJSON cannot hold; use the format gpkg"):
        written(given, tmp_path, "geojson")
    assert list(tmp_path.iterdir()) == []
    written(given, tmp_path, "gpkg")


def test_without_a_place_geojson_is_in_pixels(tmp_path, capsys):
    for place in ({}, {"crs": None, "transform": UTM["transform"]}, {"crs": UTM["crs"]}):
        given = answer(np.array([[0, 0, 1]]), place)
        content = json.loads(written(given, tmp_path, "geojson").read_text(encoding="utf-8"))
        assert content["coordinates"].startswith("pixels from the top left corner, x to the right and y down")
        assert shapely.geometry.shape(content["features"][0]["geometry"]).bounds == (0, 0, 2, 1)
        assert "area_m2" not in content["features"][0]["properties"]


def test_simplified_neighbours_keep_one_border_in_the_system(tmp_path):
    rounded = np.hypot(*(np.indices((90, 110)) - 45)) < 30
    labels = np.where(rounded, 2, blobs(90, 110, 2, cell=40))
    exact, _, _ = read(written(answer(labels, UTM), tmp_path, "gpkg"))
    rows, shapes, _ = read(written(answer(labels, UTM), tmp_path, "gpkg", simplify=2))
    assert rows["pixels"].tolist() == exact["pixels"].tolist()
    assert shapely.coverage_is_valid(shapes)
    assert shapely.union_all(shapes).area == pytest.approx(labels.size * 0.25)
    assert shapely.area(shapes).sum() == pytest.approx(labels.size * 0.25)
    assert shapely.get_num_coordinates(shapes[rows["class_index"] == 2]).max() < 40


def test_strips_make_the_same_file(tmp_path, monkeypatch):
    given = answer(MAPS["blobs"], UTM)
    rows, shapes, _ = read(written(given, tmp_path, "gpkg"))
    monkeypatch.setattr(geo, "outlines", lambda *some: outlines.outlines(*some, strip=80 * 9))
    rows_too, shapes_too, _ = read(written(given, tmp_path, "gpkg"))
    found, found_too = (
        sorted(zip((shapely.normalize(shapely.simplify(one, 0)).wkt for one in some), of["pixels"], strict=True))
        for some, of in ((shapes, rows), (shapes_too, rows_too))
    )
    assert [pixels for _, pixels in found] == [pixels for _, pixels in found_too]
    assert shapely.union_all(shapes).equals(shapely.union_all(shapes_too))


def test_a_full_disk_is_said(tmp_path):
    with pytest.raises(OSError, match="GeoPackage cannot be written"):
        geo.write_geopackage(answer(MAPS["blobs"]), Outputs(), tmp_path / "no folder" / "a.gpkg")


def test_ground():
    feet = {"crs": "EPSG:2263", "transform": rasterio.Affine(3, 0, 0, 0, -3, 0)}
    assert pixel_square_metres(UTM) == 0.25
    assert pixel_square_metres(feet) == pytest.approx(9 * 0.3048**2, rel=1e-5)
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:3395"):
        assert pixel_square_metres(UTM | {"crs": crs}) is None
    assert ground_of({"gcps": [], "crs": UTM["crs"]}) is None
    assert ground_of({}) is None
    assert ground_of(UTM).transform == UTM["transform"]
