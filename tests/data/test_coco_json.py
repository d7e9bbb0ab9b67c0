"""COCO's instances as annotation tools export them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.census import check_masks
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.run_lengths import uncompressed
from dinov3seg_jax.errors import UserError

CATEGORIES = [{"id": 90, "name": "rug-merged"}, {"id": 3, "name": "cat"}]
CAT, RUG = 0, 1
LEFT = [[0, 0, 2, 0, 2, 4, 0, 4]]  # columns 0 and 1 of 6 x 4 pixels
ALL = [[0, 0, 6, 0, 6, 4, 0, 4]]


def image(number=7, file="monday/a.png", height=4, width=6):
    return {"id": number, "file_name": file, "height": height, "width": width}


def instance(shape, category=3, picture=7, number=1, **more):
    return {"id": number, "image_id": picture, "category_id": category, "segmentation": shape} | more


IMAGES = (image(),)


def write(root: Path, instances, images=IMAGES, categories=CATEGORIES, where="annotations/instances_train.json"):
    """A data set of pictures of 6 x 4 pixels."""
    for one in images:
        path = root / "images" / one["file_name"].replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
    (root / where).parent.mkdir(parents=True, exist_ok=True)
    content = {"images": [*images], "annotations": [*instances], "categories": [*categories]}
    (root / where).write_text(json.dumps(content))
    return DatasetConfig(name="coco_json", root=str(root))


def label(config, index=0):
    return open_dataset(config).source[index]["label"]


def sentence(config, *parts):
    with pytest.raises(UserError) as error:
        label(config)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message, message


def run_lengths(mask):
    """COCO's counts, pixel by pixel down the columns."""
    counts, value = [0], 0
    for pixel in np.asarray(mask).T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


MASK = np.array([[0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1]], np.uint8)
COUNTS = {"size": [4, 6], "counts": run_lengths(MASK)}
TEXT = {"size": [4, 6], "counts": coder.encode(np.asfortranarray(MASK))["counts"].decode()}


@pytest.mark.parametrize("shape", [COUNTS, TEXT], ids=["counts", "text"])
def test_run_lengths_become_labels(tmp_path, shape):
    config = write(tmp_path, [instance(shape, 90)])
    np.testing.assert_array_equal(label(config), np.where(MASK, RUG, -1))
    example = open_dataset(config).source[0]
    assert example["name"] == "monday/a"
    assert example["label"].dtype == np.int32
    assert example["image"].shape == (4, 6, 3)


def test_run_lengths_in_text_are_read_as_their_library_does():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (300, 400), (64, 64)):
        mask = np.asfortranarray(rng.random(shape) < rng.random(), dtype=np.uint8)
        mask[: shape[0] // 2] = 1  # long runs too
        assert uncompressed(coder.encode(mask)["counts"].decode()) == run_lengths(mask)


def test_polygons_become_labels_and_ids_need_not_be_contiguous(tmp_path):
    two = [*LEFT, [4, 2, 6, 2, 6, 4, 4, 4]]
    config = write(tmp_path, [instance(two, 90)])
    expected = np.full((4, 6), -1)
    expected[:, :2] = expected[2:, 4:] = RUG
    np.testing.assert_array_equal(label(config), expected)
    assert open_dataset(config).classes == ("cat", "rug")


@pytest.mark.parametrize("turn", [1, -1])
def test_the_smaller_of_two_that_overlap_is_on_top_whatever_their_order(tmp_path, turn):
    config = write(tmp_path, [instance(ALL, 90, area=1), instance(LEFT, 3, number=2, area=24)][::turn])
    np.testing.assert_array_equal(label(config), [[CAT, CAT, RUG, RUG, RUG, RUG]] * 4)


def test_of_two_of_one_size_the_later_is_on_top(tmp_path):
    config = write(tmp_path, [instance(LEFT, 90), instance(LEFT, 3, number=2)])
    assert label(config)[0, 0] == CAT


def test_a_crowd_is_of_its_category_and_below_all_else(tmp_path):
    crowd = {"size": [4, 6], "counts": [0, 4, 20]}  # the first column: smaller than what lies on it
    config = write(tmp_path, [instance(LEFT, 90), instance(crowd, 3, number=2, iscrowd=1)])
    np.testing.assert_array_equal(label(config)[0], [RUG, RUG, -1, -1, -1, -1])
    config = write(tmp_path, [instance(crowd, 3, number=2, iscrowd=1)])
    np.testing.assert_array_equal(label(config)[0], [CAT, -1, -1, -1, -1, -1])


def test_pictures_without_annotations(tmp_path, capsys):
    config = write(tmp_path, [instance(LEFT)], [image(), image(8, "b.png")])
    assert len(open_dataset(config).source) == 1
    assert "1 of 2 pictures of" in capsys.readouterr().err
    named = DatasetConfig(name="coco_json", root=config.root, background="ground")
    dataset = open_dataset(named)
    assert dataset.classes == ("cat", "rug", "ground")
    assert [dataset.source[index]["name"] for index in range(2)] == ["b", "monday/a"]
    np.testing.assert_array_equal(dataset.source[0]["label"], np.full((4, 6), 2))
    np.testing.assert_array_equal(dataset.source[1]["label"][0], [CAT, CAT, 2, 2, 2, 2])
    sentence(DatasetConfig(name="folder", root=config.root, background="ground"), "takes no background")
    own = DatasetConfig(name="coco_json", root=config.root, background="rug-merged")
    assert open_dataset(own).classes == ("cat", "rug")
    assert label(own)[0, 0] == RUG


@pytest.mark.parametrize(
    ("where", "pictures"),
    [
        ("annotations/instances_train2017.json", "train2017"),  # COCO
        ("annotations/instances_default.json", "images/default"),  # CVAT
        ("train/_annotations.coco.json", "train"),  # Roboflow
        ("result.json", "images"),  # Label Studio
        ("labels.json", "data"),  # FiftyOne
    ],
)
def test_layouts_of_tools(tmp_path, where, pictures):
    config = write(tmp_path, [instance(LEFT)], [image(file="a.png")], where=where)
    (tmp_path / pictures).mkdir(parents=True, exist_ok=True)
    (tmp_path / "images/a.png").rename(tmp_path / pictures / "a.png")
    assert label(config)[0, 0] == CAT
    assert label(DatasetConfig(name="coco_json", root=str(tmp_path / where)))[0, 0] == CAT


def test_names_of_another_system_are_understood(tmp_path):
    config = write(tmp_path, [instance(LEFT)], [image(file="images\\a.png")])
    (tmp_path / "images/images/a.png").rename(tmp_path / "images/a.png")
    assert label(config)[0, 0] == CAT


def test_masks_are_counted_before_they_are_needed(tmp_path):
    config = write(tmp_path, [instance(LEFT)])
    notes = []
    assert check_masks(open_dataset(config), notes.append).pixels == {0: 16, 1: 8}
    assert "1 of 2 classes in" in notes[0]
    assert len(notes) == 1


def test_one_class_and_nothing_else_is_told(tmp_path):
    notes = []
    check_masks(open_dataset(write(tmp_path, [instance(LEFT)], categories=CATEGORIES[1:])), notes.append)
    assert "lists one class and all else is ignored" in notes[0]


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ([], "annotation 1 of"),
        ([[1, 2, 3, 4]], "no list of polygons of at least three points"),
        ([[0, 0, 1, 0, 1, 1, 0]], "no list of polygons"),
        (["0,0"], "no list of polygons"),
        ("text", "no list of polygons"),
        ([[0, 0, 1e9, 0, 1, 1]], "runs far out of its picture"),
        (COUNTS | {"size": [6, 4]}, "is of a picture of [6, 4], not of [4, 6]"),
        (COUNTS | {"counts": [24, 1]}, "do not cover its picture"),
        (COUNTS | {"counts": [-1, 25]}, "do not cover its picture"),
        (COUNTS | {"counts": 7}, "has no run lengths"),
        (TEXT | {"counts": TEXT["counts"][:-1]}, "do not cover its picture"),
        (TEXT | {"counts": "\u20ac"}, "do not cover its picture"),
    ],
)
def test_a_shape_that_is_none(tmp_path, shape, part):
    sentence(write(tmp_path, [instance(shape)]), part, "instances_train.json")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"instances": [instance(LEFT, 4)]}, "of the category 4"),
        ({"instances": [instance(LEFT, picture=8)]}, "annotates the image 8"),
        ({"instances": [instance(LEFT, picture=None)]}, "has None as image_id"),
        ({"instances": []}, "holds no annotation"),
        ({"images": [image(), image(8)]}, "lists the picture 'monday/a.png' 2 times"),
        ({"images": [image(), image(7, "b.png")]}, "lists the image id 7 2 times"),
        ({"images": [image() | {"id": "7"}]}, "has '7' as id"),
        ({"images": [image(height=0)]}, "6 x 0 pixels"),
        ({"images": [image(height=10**6, width=10**6)]}, "1000000 x 1000000 pixels"),
        ({"images": [image() | {"width": None}]}, "has None as width"),
        ({"images": [image(width=5)]}, "has 5 x 4 pixels but image"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]}, "lists the category id 3 2 times"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}]}, "category name 'cat' 2 times"),
        ({"categories": [{"id": 3}]}, "category 3 of"),
    ],
)
def test_a_list_that_contradicts_itself(tmp_path, changes, part):
    sentence(write(tmp_path, **({"instances": [instance(LEFT)]} | changes)), part)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[{]", "cannot be read"),
        ("[]", "no list of COCO's instances"),
        ("{}", "has no list 'categories'"),
        ('{"categories": [], "images": [], "annotations": []}', "lists no categories"),
    ],
)
def test_a_file_that_is_no_list(tmp_path, content, part):
    config = write(tmp_path, [instance(LEFT)])
    (tmp_path / "annotations/instances_train.json").write_text(content)
    sentence(config, part)


def test_files_that_are_not_there(tmp_path):
    config = write(tmp_path, [instance(LEFT)])
    sentence(DatasetConfig(name="coco_json", root=config.root, split="val"), "instances_val.json does not exist")
    (tmp_path / "images/monday/a.png").unlink()
    sentence(config, "the picture monday/a.png")
    with pytest.raises(IndexError):
        open_dataset(write(tmp_path, [instance(LEFT)])).source[1]


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    config = write(tmp_path, [instance(LEFT)])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match=r"the data set coco_json needs pycocotools.*dinov3seg_jax\[formats\]"):
        open_dataset(config)
