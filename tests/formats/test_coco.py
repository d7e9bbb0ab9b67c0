"""COCO's JSON, read back by pycocotools."""

import json

import numpy as np
import pytest

from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.formats.writing import write_formats
from tests.formats.maps import MAPS, answer, blobs
from tests.formats.test_regions import reference

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO


@pytest.fixture
def read(tmp_path, capsys):
    def read(given, name, **options):
        (path,) = write_formats(given, asked(name, **options), tmp_path, "a")
        assert path.name == f"a_{name}.json"
        return COCO(str(path))

    return read


@pytest.mark.parametrize("name", [name for name in MAPS if name != "checkerboard"])
@pytest.mark.parametrize("kind", ["coco", "coco_polygons", "coco_classes"])
def test_masks_are_those_of_the_label_map(read, name, kind):
    labels = MAPS[name]
    given = answer(labels)
    coco = read(given, kind)
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == list(given.names)
    (image,) = coco.loadImgs(coco.getImgIds())
    height, width = labels.shape
    assert image == {"id": 1, "file_name": "a folder/ä.png", "width": width, "height": height}
    if kind == "coco_classes":
        expected = [(index, labels == index) for index in np.unique(labels[labels >= 0])]
    else:
        expected = [pair for pair in reference(labels) if pair[0] >= 0]
    expected = {mask.tobytes(): index for index, mask in expected}
    for row in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(row).astype(bool)
        assert expected.pop(mask.tobytes()) == row["category_id"] - 1
        assert row["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert row["bbox"] == [left, top, right - left, bottom - top]
        assert row["score"] == pytest.approx(given.confidence[mask].mean(), abs=1e-6)
        assert row["iscrowd"] == 0
    assert not expected


def test_ids_are_unique(read):
    ids = read(answer(MAPS["blobs"]), "coco").getAnnIds()
    assert ids == list(range(1, len(ids) + 1))


def test_small_regions(read):
    given = answer(blobs(40, 60, 3))
    areas = [row["area"] for row in read(given, "coco", min_area=60).dataset["annotations"]]
    everything = [row["area"] for row in read(given, "coco").dataset["annotations"]]
    assert areas == [area for area in everything if area >= 60]
    assert len(areas) < len(everything)
    assert len(read(given, "coco_classes", min_area=60).dataset["annotations"]) == 3


def test_one_file_of_several(tmp_path, capsys):
    outputs = Outputs(("coco",), folder=tmp_path)
    from dinov3seg_jax.formats.writing import join_folder

    maps = [MAPS["blobs"], MAPS["no data"], MAPS["one class"]]
    for number, labels in enumerate(maps):
        assert write_formats(answer(labels, file=f"{number}.png"), outputs, tmp_path, str(number)) == []
    assert join_folder(outputs, [tmp_path / str(number) for number in range(3)]) == [tmp_path / "coco.json"]
    coco = COCO(str(tmp_path / "coco.json"))
    assert [row["file_name"] for row in coco.loadImgs(coco.getImgIds())] == ["0.png", "1.png", "2.png"]
    for number, labels in enumerate(maps, 1):
        found = np.full(labels.shape, -1)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=[number])):
            found[coco.annToMask(row) > 0] = row["category_id"] - 1
        np.testing.assert_array_equal(found, labels)
    ids = [row["id"] for row in coco.dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    assert json.loads((tmp_path / "coco.json").read_text(encoding="utf-8")) == coco.dataset
