"""Label Studio and CVAT: read by their own tools where they are installed, and by hand."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.formats.labelstudio import brush
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.formats.writing import join_folder, write_formats
from tests.formats.maps import MAPS, answer
from tests.formats.test_regions import reference

MOST = [name for name in MAPS if name != "checkerboard"]


def decode(stroke):
    """A stroke's values, bit by bit, as Label Studio's page does."""
    bits = "".join(f"{byte:08b}" for byte in stroke)
    place = 0

    def take(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, size = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        assert take(1) == 1
        length = take(lengths[take(2)]) + 1
        values += [take(size)] * length
    return np.array(values)


@pytest.mark.parametrize("name", MOST)
def test_label_studio(tmp_path, name):
    labels = MAPS[name]
    given = answer(labels)
    tasks, interface = write_formats(given, asked("labelstudio"), tmp_path, "a")
    assert (tasks.name, interface.name) == ("a_labelstudio.json", "a_labelstudio.xml")
    (task,) = json.loads(tasks.read_text(encoding="utf-8"))
    assert task["data"] == {"image": "/data/local-files/?d=a%20folder/%C3%A4.png"}
    page = ElementTree.parse(interface)
    assert [label.get("value") for label in page.iter("Label")] == list(given.names)
    assert {page.find("Image").get("name"), page.find("BrushLabels").get("name")} == {"image", "label"}
    expected = {mask.tobytes(): index for index, mask in reference(labels) if index >= 0}
    for row in task["predictions"][0]["result"]:
        values = decode(row["value"]["rle"]).reshape(*labels.shape, 4)
        mask = values[..., 3] == 255
        assert (values == 255 * mask[..., None]).all()
        assert row["value"]["brushlabels"] == [given.names[expected.pop(mask.tobytes())]]
        assert (row["original_height"], row["original_width"]) == labels.shape
        assert row["score"] == pytest.approx(given.confidence[mask].mean(), abs=1e-6)
    assert not expected


def test_long_strokes():
    counts = np.array([3, 70_000, 1, 2**18, 5])
    np.testing.assert_array_equal(decode(brush(counts)), np.repeat([0, 255, 0, 255, 0], counts))


@pytest.mark.parametrize("name", ["blobs", "noise", "one pixel"])
def test_label_studio_reads_it(tmp_path, name):
    """Its own decoder, and its own check of a prediction against the interface."""
    module = pytest.importorskip("label_studio_sdk.converter.brush")
    from label_studio_sdk.label_interface import LabelInterface

    labels = MAPS[name]
    tasks, page = write_formats(answer(labels), asked("labelstudio"), tmp_path, "a")
    (task,) = json.loads(tasks.read_text(encoding="utf-8"))
    interface = LabelInterface(page.read_text(encoding="utf-8"))
    assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
    assert interface.validate_task({"data": task["data"]})
    found = np.full(labels.shape, -1)
    for row in task["predictions"][0]["result"]:
        values = module.decode_rle(row["value"]["rle"]).reshape(*labels.shape, 4)
        found[values[..., 3] > 0] = answer(labels).names.index(row["value"]["brushlabels"][0])
    np.testing.assert_array_equal(found, labels)


def masks_of(image):
    """Name and mask of each `mask` of an `image`."""
    size = int(image.get("height")), int(image.get("width"))
    for row in image.iter("mask"):
        left, top, width, height = (int(row.get(key)) for key in ("left", "top", "width", "height"))
        counts = list(map(int, row.get("rle").split(",")))
        mask = np.zeros(size, bool)
        box = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        assert len(box) == width * height
        mask[top : top + height, left : left + width] = box.reshape(height, width)
        yield row.get("label"), mask


@pytest.mark.parametrize("name", MOST)
def test_cvat(tmp_path, name):
    labels = MAPS[name]
    given = answer(labels)
    (path,) = write_formats(given, asked("cvat"), tmp_path, "a")
    assert path.name == "a_cvat.xml"
    root = ElementTree.parse(path).getroot()
    assert root.find("version").text == "1.1"
    assert [label.find("name").text for label in root.iter("label")] == list(given.names)
    (image,) = root.iter("image")
    assert (image.get("id"), image.get("name")) == ("0", "a folder/ä.png")
    expected = {mask.tobytes(): index for index, mask in reference(labels) if index >= 0}
    for label, mask in masks_of(image):
        assert label == given.names[expected.pop(mask.tobytes())]
    assert not expected


def test_what_xml_cannot_hold(tmp_path):
    given = dataclasses.replace(answer(MAPS["one row"], file="bell\a.png"), names=("\0", "\ud800", "c"))
    path, tasks, page = write_formats(given, asked("cvat,labelstudio"), tmp_path, "a")
    assert [label.get("value") for label in ElementTree.parse(page).iter("Label")] == ["\ufffd", "\ufffd", "c"]
    (task,) = json.loads(tasks.read_text(encoding="utf-8"))
    assert task["predictions"][0]["result"][0]["value"]["brushlabels"] == ["\ufffd"]
    (image,) = ElementTree.parse(path).getroot().iter("image")
    assert image.get("name") == "bell\N{REPLACEMENT CHARACTER}.png"


def test_cvat_of_a_folder_as_datumaro_reads_it(tmp_path):
    """Datumaro's reader is the one that CVAT has."""
    datumaro = pytest.importorskip("datumaro")
    outputs = Outputs(("cvat",), folder=tmp_path)
    for number, name in enumerate(("blobs", "noise")):
        given = answer(MAPS[name], file=f"{number}.png")
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (given.width, given.height)).save(tmp_path / "images" / f"{number}.png")
        write_formats(given, outputs, tmp_path, str(number))
    join_folder(outputs, [tmp_path / "0", tmp_path / "1"])
    dataset = datumaro.Dataset.import_from(str(tmp_path), "cvat")
    categories = dataset.categories()[datumaro.AnnotationType.label]
    for number, name in enumerate(("blobs", "noise")):
        (item,) = (item for item in dataset if item.id == str(number))
        found = np.full(MAPS[name].shape, -1)
        for row in item.annotations:
            found[row.image > 0] = answer(MAPS["blobs"]).names.index(categories[row.label].name)
        np.testing.assert_array_equal(found, MAPS[name])
