"""COCO's panoptic files as downloaded."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.errors import UserError

CATEGORIES = [{"id": 200, "name": "rug-merged"}, {"id": 1, "name": "person"}, {"id": 92, "name": "banner"}]
SEGMENTS = {"a": {7: 1, 70_000: 200}, "b": {7: 92}}
PLACES = {"a": [[7, 70_000], [0, 7]], "b": [[7, 7], [0, 0]]}
LABELS = {"a": [[0, 2], [-1, 0]], "b": [[1, 1], [-1, -1]]}


def _colours(numbers: list[list[int]]) -> Image.Image:
    number = np.array(numbers)
    return Image.fromarray(np.stack([number % 256, number // 256 % 256, number // 65536], axis=-1).astype(np.uint8))


def _write(
    root: Path, images="train2017", segments="annotations/panoptic_train2017", names=("a", "b")
) -> DatasetConfig:
    for folder in (images, segments, "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (2, 2)).save(root / images / f"{name}.jpg")
        _colours(PLACES[name]).save(root / segments / f"{name}.png")
    _list(root)
    return DatasetConfig(name="coco_panoptic", root=str(root))


def _list(root: Path, segments: dict[str, dict[int, int]] = SEGMENTS) -> None:
    entries = [
        {"file_name": f"{name}.png", "segments_info": [{"id": i, "category_id": c} for i, c in listed.items()]}
        for name, listed in reversed(segments.items())
    ]
    (root / "annotations" / "panoptic_train2017.json").write_text(
        json.dumps({"categories": CATEGORIES, "annotations": entries})
    )


def _sentence(config: DatasetConfig, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        _ = open_dataset(config).source[0]
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "folders",
    [
        ("train2017", "annotations/panoptic_train2017"),
        ("train2017", "panoptic_train2017"),
        ("images/train2017", "annotations/panoptic_train2017"),
    ],
)
def test_segments_become_classes_in_the_order_of_their_ids(tmp_path, folders):
    dataset = open_dataset(_write(tmp_path, *folders))
    assert dataset.classes == ("person", "banner", "rug")
    assert [dataset.source[index]["name"] for index in range(len(dataset.source))] == ["a", "b"]
    for index, name in enumerate("ab"):
        np.testing.assert_array_equal(dataset.source[index]["label"], LABELS[name])
        assert dataset.source[index]["label"].dtype == np.int32


def test_a_segment_of_another_release_is_refused(tmp_path):
    config = _write(tmp_path)
    _list(tmp_path, SEGMENTS | {"a": {7: 1, 9: 1}})
    _sentence(config, "holds the segment 70000", "a.png")


def test_an_image_that_the_list_lacks_is_named(tmp_path):
    config = _write(tmp_path)
    _list(tmp_path, {"b": SEGMENTS["b"]})
    _sentence(config, "does not list the image a")


@pytest.mark.parametrize(
    ("gone", "part"), [("train2017/a.jpg", "has no image"), ("annotations/panoptic_train2017/a.png", "has no mask")]
)
def test_a_file_without_its_partner_is_named(tmp_path, gone, part):
    config = _write(tmp_path)
    (tmp_path / gone).unlink()
    _sentence(config, part)


def test_a_semantic_mask_in_place_of_segments_is_refused(tmp_path):
    config = _write(tmp_path)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "annotations/panoptic_train2017/a.png")
    _sentence(config, "mode L, not RGB")


def test_segments_that_were_cut_off_are_named(tmp_path):
    config = _write(tmp_path)
    path = tmp_path / "annotations/panoptic_train2017/a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    _sentence(config, "a.png is truncated or damaged")


@pytest.mark.parametrize(
    ("content", "part"), [(None, "does not exist"), ("[{]", "cannot be read"), ("{}", "no list of panoptic")]
)
def test_a_list_that_is_none(tmp_path, content, part):
    config = _write(tmp_path)
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    _sentence(config, part, "panoptic_train2017.json")


def test_a_missing_split_is_named(tmp_path):
    config = _write(tmp_path)
    _sentence(DatasetConfig(name="coco_panoptic", split="eval", root=config.root), "val2017")
