"""Formats of folders, of rasters, and of pictures larger than memory."""

import csv
import json
import sqlite3

import numpy as np
import pytest
import rasterio
from rasterio import features

from dinov3seg_jax.cli import request
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.pictures import finished, huge
from dinov3seg_jax.pictures.batches import segment_pictures
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.pictures.places import titles
from tests.data.rasters import PLACE, save_raster
from tests.pictures.test_folder_runs import contents, folder, words  # noqa: F401, a fixture
from tests.pictures.test_geography import TiledStub, WholeStub
from tests.pictures.test_huge import ENOUGH, Stub, names_of, scene

MANY = ("--format", "csv,cvat,labelstudio,numpy")
FILES = {"summary.csv", "cvat.xml", "labelstudio.json", "labelstudio.xml"}


def seen(out):
    return {path.name for path in out.iterdir() if not path.name.startswith(".")}


def rows(out):
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_only_the_formats_that_are_asked_for(folder, tmp_path, capsys):  # noqa: F811
    assert main(words(folder, "out", *MANY)) == 0
    out = tmp_path / "out"
    assert seen(out) == FILES | {f"{number:03}_labels.npy" for number in range(5)}
    assert [row["picture"] for row in rows(out)[::3]] == [f"{number:03}.png" for number in range(5)]
    assert sum(int(row["pixels"]) for row in rows(out)) == sum(
        np.load(out / f"{number:03}_labels.npy").size for number in range(5)
    )
    printed = capsys.readouterr().out
    assert "out/001_labels.npy" in printed
    assert f"all pictures -> {'out'}/summary.csv" in printed


def test_files_of_a_folder_are_complete_after_a_stop(folder, tmp_path, monkeypatch):  # noqa: F811
    """The same to the last byte, whatever was done when."""
    main(words(folder, "whole", *MANY))
    saved = []
    with monkeypatch.context() as patched:

        def stop(*arguments):
            if len(saved) == 2:
                raise KeyboardInterrupt
            saved.append(arguments)
            return written(*arguments)

        from dinov3seg_jax.inference import result

        written = result.write_formats
        patched.setattr(result, "write_formats", stop)
        with pytest.raises(KeyboardInterrupt):
            main(words(folder, "out", *MANY))
    assert not FILES & seen(tmp_path / "out")
    assert main(words(folder, "out", *MANY)) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for hidden in (".classes.json", ".001.cvat"):
        (tmp_path / "out" / hidden).unlink()
        assert main(words(folder, "out", *MANY)) == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    (tmp_path / "out" / "cvat.xml").unlink()
    monkeypatch.setattr(request, "load", None)  # no model is needed
    assert main(words(folder, "out", *MANY)) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_picture_that_fails_is_in_no_file(folder, tmp_path):  # noqa: F811
    main(words(folder, "out", *MANY))
    (folder / "002.png").write_bytes(b"damaged")
    assert main(words(folder, "out", *MANY)) == 2
    assert {row["picture"] for row in rows(tmp_path / "out")} == {f"{number:03}.png" for number in (0, 1, 3, 4)}


def test_more_formats_of_the_same_question(folder, tmp_path):  # noqa: F811
    """What is there stays."""
    main(words(folder, "out"))
    before = contents(tmp_path / "out")
    assert main(words(folder, "out", "--format", "csv", "overlay")) == 0
    after = contents(tmp_path / "out")
    assert {name.name for name in after.keys() - before.keys()} == {
        "summary.csv",
        ".classes.json",
        *(f".{number:03}.csv" for number in range(5)),
    }
    assert all(after[name] == content for name, content in before.items() if name.name != ".predictions.json")
    main(words(folder, "other", classes="grass, sky"))
    main(words(folder, "out", "--overwrite", classes="grass, sky"))
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_regions_of_another_size_are_another_question(folder, tmp_path):  # noqa: F811
    main(words(folder, "out", "--format", "cvat", "--min_area", "5"))
    with pytest.raises(UserError, match="out holds results of other --min_area; choose another --out"):
        main(words(folder, "out", "--format", "cvat", "--min_area", "6"))
    with pytest.raises(UserError, match="out holds results of other --min_area"):
        main(words(folder, "out", "--format", "cvat"))


@pytest.mark.parametrize(("name", "written"), [("summary.csv", "csv"), ("001.txt", "yolo"), ("data.yaml", "yolo")])
def test_a_file_of_the_user(folder, tmp_path, name, written, monkeypatch):  # noqa: F811
    pytest.importorskip("shapely")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with monkeypatch.context() as patched:
        patched.setattr(request, "load", None)
        with pytest.raises(UserError, match=f"{name} was not written by this program"):
            main(words(folder, "out", "--format", written))
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert main(words(folder, "out", "--format", written, "--overwrite")) == 0
    assert (tmp_path / "out" / name).read_text() != "mine"


def test_one_picture_has_files_of_its_own(folder, tmp_path):  # noqa: F811
    for name in ("001.png", "002.png"):
        assert main(words(folder / name, "out", *MANY)) == 0
    assert seen(tmp_path / "out") == {
        *(f"{stem}_{name}" for name in FILES for stem in ("001", "002")),
        "001_labels.npy",
        "002_labels.npy",
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--format", "coko"), "there is no format 'coko'"),
        (("--min_area", "some"), "min_area is 'some'"),
        (
            ("--min_area", "gras=5"),
            r"the class 'gras', which is none of those that are asked for \(did you mean 'grass'",
        ),
        (("--simplify", "-1"), "simplify is '-1'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(folder, monkeypatch, more, message):  # noqa: F811
    monkeypatch.setattr(request, "load", None)
    with pytest.raises(UserError, match=message):
        main(words(folder, "out", *more))


def test_a_file_of_a_folder_that_cannot_be_written(folder, tmp_path, monkeypatch):  # noqa: F811
    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(finished, "join_folder", fail)
    with pytest.raises(UserError, match=r"out cannot be written \(no room\); choose another --out"):
        main(words(folder, "out", "--format", "csv"))


def test_titles(tmp_path):
    one = {tmp_path / "a" / "x.png": tmp_path / "a", tmp_path / "a" / "b" / "x.png": tmp_path / "a"}
    assert titles(one) == ["x.png", "b/x.png"]
    assert titles(one | {tmp_path / "c" / "x.png": tmp_path / "c"}) == ["a/x.png", "a/b/x.png", "c/x.png"]
    assert titles({}) == []


@pytest.mark.parametrize("model", [TiledStub, WholeStub])
def test_a_raster(tmp_path, model):
    """Both ways of segmenting it know its place, and where it has no data."""
    pytest.importorskip("pyogrio")
    values = np.maximum(np.moveaxis(scene(70, 90), -1, 0), 1)
    values[:, 20:50, 30:60] = 0
    path = save_raster(tmp_path / "a.tif", values, nodata=0, **PLACE)
    outputs = asked("labels,gpkg,csv,cvat", simplify=0)
    (outcome,) = segment_pictures(
        model(), names_of(5), [one := Picture(path, tmp_path / "b")], {one}, 1, 2 * ENOUGH, outputs=outputs
    )
    assert outcome.error == ""
    assert sum(row["pixels"] for row in outcome.summary["classes"]) == 70 * 90 - 900
    with rasterio.open(tmp_path / "b_labels.tif") as file:
        labels = file.read(1)
    import shapely
    from pyogrio import raw

    meta, _, shapes, columns = raw.read(tmp_path / "b_regions.gpkg")
    found = dict(zip(meta["fields"], columns, strict=True))
    assert rasterio.CRS.from_user_input(meta["crs"]) == rasterio.CRS.from_string(PLACE["crs"])
    pairs = zip(shapely.from_wkb(shapes), found["class_index"], strict=True)
    painted = features.rasterize(pairs, labels.shape, fill=255, transform=PLACE["transform"], dtype="uint8")
    np.testing.assert_array_equal(painted, labels)
    sums = [row["pixels"] * (row["mean_confidence"] or 0) for row in outcome.summary["classes"]]
    assert (found["confidence"] * found["pixels"]).sum() == pytest.approx(sum(sums), rel=1e-5)
    with (tmp_path / "b_summary.csv").open(newline="", encoding="utf-8") as file:
        assert sum(float(row["area_m2"]) for row in csv.DictReader(file)) == (70 * 90 - 900) / 4
    with sqlite3.connect(tmp_path / "b_regions.gpkg") as base:
        assert base.execute("select count(*) from regions").fetchone() == (len(shapes),)


def test_a_format_that_does_not_fit_into_memory(tmp_path):
    path = save_raster(tmp_path / "a.tif", np.zeros((3, 5000, 5000), np.uint8), compress="deflate", **PLACE)
    with pytest.raises(UserError, match=r"the format cvat holds all of .*a.tif in memory, about 1.2 GB, more than the"):
        huge.segment_file(Stub(), path, names_of(3), tmp_path / "out", "a", ENOUGH, formats="labels,cvat")
    with pytest.raises(UserError, match="which keeps no scores; raise --memory, or leave them out"):
        huge.segment_file(Stub(), path, names_of(3), tmp_path / "out", "a", ENOUGH, formats="scores")
    assert not (tmp_path / "out").exists()


def test_formats_in_python(tmp_path):
    path = save_raster(tmp_path / "a.tif", np.moveaxis(scene(40, 40), -1, 0), **PLACE)
    summary = huge.segment_file(
        Stub(), path, names_of(3), tmp_path / "out", "a", ENOUGH, formats="json,numpy,csv", file="sub/a.tif"
    )
    assert seen(tmp_path / "out") == {"a.json", "a_labels.npy", "a_summary.csv"}
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == summary
    assert "labels" not in summary
    assert (tmp_path / "out" / "a_summary.csv").read_text().splitlines()[1].startswith("sub/a.tif,0,")


def test_scores_of_a_raster(folder, tmp_path):  # noqa: F811
    save_raster(tmp_path / "a.tif", np.moveaxis(scene(40, 40), -1, 0), **PLACE)
    whole = "--config.inference.resize=short_side"
    assert main(words(tmp_path / "a.tif", "out", whole, "--format", "scores,labels")) == 0
    with (
        rasterio.open(tmp_path / "out" / "a_scores.tif") as found,
        rasterio.open(tmp_path / "out" / "a_labels.tif") as labels,
    ):
        assert found.transform == labels.transform == PLACE["transform"]
        assert found.descriptions == ("red circle", "grass", "sky")
        np.testing.assert_array_equal(found.read().argmax(0), labels.read(1))


def test_scores_of_a_folder(folder, tmp_path):  # noqa: F811
    """They are those of the labels."""
    whole = "--config.inference.resize=short_side"
    assert main(words(folder, "out", whole, "--format", "scores,numpy,json")) == 0
    for number in range(5):
        found = np.load(tmp_path / "out" / f"{number:03}_scores.npz")
        labels = np.load(tmp_path / "out" / f"{number:03}_labels.npy")
        assert found["names"].tolist() == ["red circle", "grass", "sky"]
        best = np.take_along_axis(found["scores"], labels[None], 0)[0]
        assert (best == found["scores"].max(0)).mean() > 0.99  # half precision has ties
        summary = json.loads((tmp_path / "out" / f"{number:03}.json").read_text())
        mean = sum(row["pixels"] * (row["mean_confidence"] or 0) for row in summary["classes"]) / labels.size
        assert mean == pytest.approx(best.mean(dtype=float), rel=1e-3)
