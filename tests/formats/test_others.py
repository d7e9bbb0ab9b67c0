"""Tables, scores, arrays and supervision's detections."""

import csv
import json

import numpy as np
import pytest
import rasterio

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats import detections, tables
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.formats.writing import join_folder, write_formats
from tests.formats.maps import MAPS, RNG, UTM, answer
from tests.formats.test_regions import reference


def test_rows(monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 100)
    given = answer(MAPS["noise"], UTM)
    labels = given.labels
    for index, row in enumerate(tables.rows(given)):
        mask = labels == index
        assert row == {
            "picture": "a folder/ä.png",
            "class_index": index,
            "class": given.names[index],
            "pixels": mask.sum(),
            "fraction": mask.sum() / (labels >= 0).sum(),
            "mean_confidence": pytest.approx(given.confidence[mask].mean(), rel=1e-5),
            "area_m2": mask.sum() / 4,
        }


def test_a_class_that_is_absent_has_a_row():
    assert [(row["pixels"], row["fraction"], row["mean_confidence"]) for row in tables.rows(answer([[1, -1]]))] == [
        (0, 0, None),
        (1, 1, 0.25),
        (0, 0, None),
    ]
    assert tables.rows(answer([[1]]))[0]["area_m2"] is None
    assert {row["fraction"] for row in tables.rows(answer([[-1]]))} == {0}


def test_tables_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 7)
    outputs = Outputs(("csv", "parquet"), folder=tmp_path)
    maps = ("blobs", "no data", "noise")
    for number, name in enumerate(maps):
        write_formats(answer(MAPS[name], file=f"{name},\n.png"), outputs, tmp_path, str(number))
    paths = join_folder(outputs, [tmp_path / str(number) for number in range(3)])
    assert [path.name for path in paths] == ["summary.csv", "summary.parquet"]
    expected = [row for name in maps for row in tables.rows(answer(MAPS[name], file=f"{name},\n.png"))]
    with paths[0].open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert found == [{key: "" if value is None else str(value) for key, value in row.items()} for row in expected]
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(paths[1]).to_pylist() == expected
    assert parquet.ParquetFile(paths[1]).num_row_groups > 1


def test_a_data_frame():
    pandas = pytest.importorskip("pandas")
    frame = tables.frame(answer(MAPS["blobs"]))
    assert list(frame.columns) == list(tables.COLUMNS)
    assert frame["pixels"].sum() == MAPS["blobs"].size
    assert isinstance(frame, pandas.DataFrame)


def test_an_array(tmp_path):
    (path,) = write_formats(answer(MAPS["noise"]), asked("numpy"), tmp_path, "a")
    assert path.name == "a_labels.npy"
    np.testing.assert_array_equal(np.load(path), MAPS["noise"])


def test_scores(tmp_path):
    scores = RNG.random((3, *MAPS["noise"].shape)).astype(np.float32)
    (path,) = write_formats(answer(MAPS["noise"], scores=scores), asked("scores"), tmp_path, "a")
    assert path.name == "a_scores.npz"
    found = np.load(path)
    assert found["scores"].dtype == np.float16
    np.testing.assert_allclose(found["scores"], scores, atol=2**-11)
    assert found["names"].tolist() == list(answer(MAPS["noise"]).names)


def test_scores_of_a_place(tmp_path):
    scores = RNG.random((3, *MAPS["noise"].shape)).astype(np.float32)
    given = answer(MAPS["noise"], UTM, scores=scores)
    (path,) = write_formats(given, asked("scores"), tmp_path, "a")
    assert path.name == "a_scores.tif"
    with rasterio.open(path) as file:
        assert file.descriptions == given.names
        assert (file.crs, file.transform) == (rasterio.CRS.from_epsg(32633), UTM["transform"])
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(file.read(), np.where(given.labels < 0, np.nan, scores))


def test_scores_that_were_not_kept(tmp_path):
    with pytest.raises(UserError, match="has no scores of all classes"):
        write_formats(answer(MAPS["noise"]), asked("scores"), tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_detections():
    pytest.importorskip("supervision")
    given = answer(MAPS["noise"])
    found = detections.detections(given, Outputs(min_area={"": 2}))
    expected = {mask.tobytes(): index for index, mask in reference(given.labels) if index >= 0 and mask.sum() > 1}
    assert len(found) == len(expected)
    for mask, box, index, confidence, name in zip(
        found.mask, found.xyxy, found.class_id, found.confidence, found.data["class_name"], strict=True
    ):
        assert expected[mask.tobytes()] == index
        assert given.names[index] == name
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert confidence == pytest.approx(given.confidence[mask].mean(), rel=1e-5)
    assert len(detections.detections(answer(MAPS["no data"]), Outputs())) == 0


def test_too_many_detections(monkeypatch):
    monkeypatch.setattr(detections, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="regions of 64 x 64 pixels would take 0 GB as masks; give a larger min_area"):
        detections.detections(answer(MAPS["checkerboard"]), Outputs())


def test_names_are_kept_for_the_folder(tmp_path):
    """They are those of the pictures, whatever a later run calls them."""
    outputs = Outputs(("yolo",), folder=tmp_path)
    write_formats(answer(MAPS["blobs"]), outputs, tmp_path, "a")
    found = json.loads((tmp_path / ".classes.json").read_text(encoding="utf-8"))
    assert found["names"] == list(answer(MAPS["blobs"]).names)
    assert join_folder(outputs, []) == []
    assert [path.name for path in join_folder(outputs, [tmp_path / "a"])] == ["data.yaml"]
