"""A data set in a bucket holds what the same files hold on this machine, and half of one is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import DataConfig, DatasetConfig
from dinov3seg_jax.data import readers
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.images import as_array, read_image
from dinov3seg_jax.data.pipeline import train_iterator
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.data.tfds_builder import write_records
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.folders import copy_tree
from dinov3seg_jax.places import place
from tests.data.test_tfds import prepared

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six pictures with masks, which are kept in a cache of their own when they are read from a bucket."""
    monkeypatch.setenv("DINOV3SEG_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    for part, values in (("images", (256, (40, 48, 3))), ("masks", (3, (40, 48)))):
        (root / part / "train" / "deep").mkdir(parents=True)
        for number in range(6):
            name = f"deep/{number}.png" if number % 2 else f"{number}.png"
            Image.fromarray(RNG.integers(0, *values, dtype=np.uint8)).save(root / part / "train" / name)
    (root / "classes.json").write_text(json.dumps([{"id": 1, "name": "cat"}, {"id": 2, "name": "rug"}]))
    return root


def opened(root, name="folder", split="train"):
    return open_dataset(DatasetConfig(name=name, split=split, root=str(root)))


def assert_same(here, there):
    assert here.classes == there.classes
    assert len(here.source) == len(there.source)
    for index in range(len(here.source)):
        one, other = here.source[index], there.source[index]
        assert one["name"] == other["name"]
        for key in ("image", "label"):
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("bucket", ["s3", pytest.param("gcs", marks=pytest.mark.slow)], indirect=True)
def test_a_folder_is_the_same_and_read_once(folder, bucket, faults):
    root = place(f"{bucket}/data")
    copy_tree(folder, root)
    here, there = opened(folder), opened(root)
    assert_same(here, there)
    faults.seen.clear()
    assert_same(here, there)
    assert faults.seen == []  # pictures of a data set are kept
    changed = root / "images" / "train" / "0.png"
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(folder / "images" / "train" / "0.png")
    changed.write_bytes((folder / "images" / "train" / "0.png").read_bytes())
    assert_same(here, opened(root))


def test_without_a_cache_it_is_streamed(folder, s3, s3_faults, monkeypatch):
    monkeypatch.setenv("DINOV3SEG_CACHE", "off")
    copy_tree(folder, place(f"{s3}/data"))
    there = opened(f"{s3}/data")
    for _ in range(2):
        s3_faults.seen.clear()
        assert there.source[0]["image"].shape == (40, 48, 3)
        assert len(s3_faults.seen) == 2  # a picture and its mask, a request each


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same(folder, s3, workers):
    copy_tree(folder, place(f"{s3}/data"))
    options = DataConfig(crop_size=32, short_side=(32, 48), workers=workers)
    here, there = (train_iterator(opened(root), options, 2, 0) for root in (folder, f"{s3}/data"))
    for _ in range(4):
        one, other = next(here), next(there)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    here.close()
    there.close()


@pytest.mark.parametrize("bucket", ["s3", pytest.param("gcs", marks=pytest.mark.slow)], indirect=True)
def test_coco_json(tmp_path, bucket):
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.fromarray(RNG.integers(0, 256, (4, 6, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 4, "width": 6}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 2, 0, 2, 4, 0, 4]]}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    root = place(f"{bucket}/coco")
    copy_tree(tmp_path, root)
    assert_same(opened(tmp_path, "coco_json"), opened(root, "coco_json"))
    assert_same(
        opened(tmp_path, "coco_json"), opened(root / "annotations" / "instances_train.json", "coco_json")
    )  # the file itself
    (root / "images" / "a.png").unlink()
    with pytest.raises(UserError, match="the picture a.png that .* lists is neither in"):
        opened(root, "coco_json")


def test_colour_masks(tmp_path, s3):
    for part in ("images", "masks"):
        (tmp_path / part / "train").mkdir(parents=True)
        Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / part / "train" / "a.png")
    (tmp_path / "classes.csv").write_text("name,r,g,b\ncat,255,0,0\nrug,0,0,255\n")
    copy_tree(tmp_path, place(f"{s3}/colours"))
    assert_same(opened(tmp_path, "colour_masks"), opened(f"{s3}/colours", "colour_masks"))


@pytest.mark.slow
def test_prepared_folders_and_records(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("DINOV3SEG_CACHE", str(tmp_path / "cache"))
    source = prepared(tmp_path / "prepared" / "voc_20", "voc_20")
    records = write_records("voc_20", source, tmp_path / "records")
    root = place(f"{bucket}/sets")
    copy_tree(source, root / "prepared")
    copy_tree(tmp_path / "records", root / "records")
    here = opened(source, "voc_20", "eval")
    assert_same(here, opened(root / "prepared", "voc_20", "eval"))
    assert_same(here, opened(root / "records", "voc_20", "eval"))
    (shard,) = [path.name for path in records.iterdir() if "array_record" in path.name]
    there = root / "records" / "voc_20" / "1.0.0" / shard
    content = there.read_bytes()
    there.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="copy the folder again, or write it anew"):
        opened(root / "records", "voc_20", "eval").source[2]
    there.unlink()
    with pytest.raises(UserError, match="does not exist; copy the folder again"):
        opened(root / "records", "voc_20", "eval")
    for path in [path for path in (root / "prepared" / "labels").rglob("*.png")][:1]:
        path.unlink()
    with pytest.raises(UserError, match="has no mask of its name"):
        opened(root / "prepared", "voc_20", "eval")


def test_half_a_data_set_is_refused(folder, s3):
    root = place(f"{s3}/half")
    copy_tree(folder, root)
    (root / "masks" / "train" / "deep" / "1.png").unlink()
    with pytest.raises(UserError, match=r"image .*deep/1.png has no mask of its name in .*; add it or move the image"):
        opened(root)
    (root / "classes.json").unlink()
    with pytest.raises(UserError, match="classes.json does not exist"):
        opened(root)
    with pytest.raises(UserError, match=r"the folder .*absent of data set 'folder' does not exist"):
        opened(f"{s3}/absent")


def test_a_picture_anywhere(folder, bucket):
    copy_tree(folder, place(f"{bucket}/data"))
    here, there = folder / "images" / "train" / "0.png", f"{bucket}/data/images/train/0.png"
    for picture in (there, place(there)):
        np.testing.assert_array_equal(as_array(picture), read_image(here))
    with pytest.raises(UserError, match=r"no.png does not exist; check the path"):
        read_image(f"{bucket}/data/no.png")
    place(f"{bucket}/data/empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty.png is empty; save or copy it again"):
        read_image(f"{bucket}/data/empty.png")


def test_a_large_picture_is_copied_here(folder, s3, monkeypatch, tmp_path):
    copy_tree(folder, place(f"{s3}/data"))
    monkeypatch.setattr(readers, "LARGE", 1000)
    picture = readers.in_reach(place(f"{s3}/data/images/train/0.png"))
    assert picture.is_relative_to(tmp_path / "cache" / "copies")
    assert picture.read_bytes() == (folder / "images" / "train" / "0.png").read_bytes()


def test_records_are_not_written_to_a_bucket(tmp_path, s3):
    with pytest.raises(UserError, match="records are written to a folder of this machine"):
        write_records("voc_20", tmp_path, place(f"{s3}/records"))


def test_a_folder_is_not_prepared_in_a_bucket(s3):
    with pytest.raises(UserError, match=f"prepare writes to a folder of this machine, not to {s3}/voc"):
        prepare("voc_20", [], f"{s3}/voc")
