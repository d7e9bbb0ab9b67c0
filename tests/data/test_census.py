"""Masks that cannot mean what the class list says are refused or told of, with the mend that fits."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data import census
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.census import check_masks, take_census
from dinov3seg_jax.data.datasets import Dataset, open_dataset
from dinov3seg_jax.data.tfds_builder import write_records
from dinov3seg_jax.errors import UserError


def folder(root, ids, masks, palette=None):
    """A data set of one's own: each mask is a row of values, or an image."""
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(masks):
        mask = values if isinstance(values, Image.Image) else Image.fromarray(np.array([values], np.uint8))
        if palette:
            mask.putpalette(palette)
        mask.save(root / f"masks/train/{number:05}.png")
        Image.new("RGB", mask.size).save(root / f"images/train/{number:05}.png")
    (root / "classes.json").write_text(json.dumps([{"id": number, "name": f"class {number}"} for number in ids]))
    return DatasetConfig(name="folder", split="train", root=str(root))


def check(config):
    """What `check_masks` finds, and what it tells."""
    notes = []
    return check_masks(open_dataset(config), notes.append), notes


def refused(config, *parts):
    with pytest.raises(UserError) as caught:
        check(config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message, message
    return message


def test_masks_that_fit_need_no_word(tmp_path):
    found, notes = check(folder(tmp_path, [1, 2], [[0, 1, 1, 255], [2, 2, 2, 2]]))
    assert (found.masks, found.of) == (2, 2)
    assert found.pixels == {0: 1, 1: 2, 2: 4, 255: 1}
    assert notes == []


@pytest.mark.parametrize(
    ("ids", "values", "mend"),
    [
        ([1], [0, 0, 255, 255], "say id 255 in classes.json instead of 1, or write 1 into the masks instead"),
        ([1], [255, 255], "say id 255 in classes.json instead of 1"),
        ([1, 2], [0, 255], "say ids 0 and 255 in classes.json instead of 1 and 2"),
        ([1], [0, 0], "if the masks count from 0, subtract 1 from each id in classes.json"),
        ([7, 9], [0, 255], "say ids 0 and 255 in classes.json instead of 7 and 9"),
        ([1, 2, 3], [0, 255], "declare what they hold, or make the masks anew"),
        ([7, 9, 11], [0, 0], "declare what they hold, or make the masks anew"),
    ],
)
def test_masks_that_label_nothing_are_refused(tmp_path, ids, values, mend):
    message = refused(
        folder(tmp_path, ids, [values] * 2), "none of the masks (2 of 2 read)", "labels a single pixel", mend
    )
    assert str(tmp_path / "masks/train/00000.png") in message
    share = 100 * values.count(values[-1]) / len(values)
    assert f"{values[-1]} ({share:.1f} %)" in message
    assert f"{tmp_path / 'classes.json'} lists {ids[0]}" in message


@pytest.mark.parametrize(
    ("ids", "values", "strange", "mend"),
    [
        ([0, 1, 2], [1, 2, 3], 3, "if the masks count from 1, add 1 to each id in classes.json"),
        ([2, 3, 4], [1, 2, 3], 1, "if the masks count from 0, subtract 1 from each id in classes.json"),
        (
            [0, 1, 2],
            [0, 127, 255],
            127,
            "say ids 0, 127 and 255 in classes.json instead of 0 to 2, or write 0 to 2 into",
        ),
        ([0, 1, 2], [0, 128, 255], 128, "say ids 0, 128 and 255 in classes.json"),
        ([1, 2], [0, 127, 255], 127, "say ids 127 and 255 in classes.json instead of 1 and 2"),
        ([0, 1, 2, 3], [0, 85, 170], 85, "say ids 0, 85, 170 and 255 in classes.json"),
        ([1, 2, 3], [0, 40, 80, 120], 40, "say ids 40, 80 and 120 in classes.json"),
        ([1, 2], [1, 2, 9], 9, "declare what they hold, or make the masks anew"),
        ([1, 2], [0, 1, *range(20, 60)], 20, "smoothed edges"),
    ],
)
def test_values_that_are_no_class_are_refused_with_the_likely_mend(tmp_path, ids, values, strange, mend):
    refused(folder(tmp_path, ids, [values] * 3), f"holds the value {strange}, which is no class", mend)


def test_the_mask_with_a_strange_value_is_named(tmp_path):
    config = folder(tmp_path, [1, 2], [[1, 2], [1, 2], [1, 9], [1, 2]])
    refused(config, f"mask {tmp_path / 'masks/train/00002.png'} holds the value 9, which is no class", "lists 1 and 2")


def test_palettes_whose_indices_are_no_ids_but_whose_levels_are(tmp_path):
    """As programs write them that sort a palette by use."""
    palette = [level for grey in (0, 5, 9) for level in (grey, grey, grey)]
    mend = "of a palette the indices count, but its grey levels are 0, 5 and 9: if those are the ids, save the masks as"
    refused(folder(tmp_path, [5, 9], [[0, 1, 2]], palette), "holds the value 1", mend)
    _, notes = check(folder(tmp_path, [1, 2, 5, 9], [[0, 1, 2]], palette))
    assert mend in notes[-1]
    _, notes = check(folder(tmp_path, [1, 2], [[0, 1, 2]], palette))
    assert notes == []
    in_colours = [level for index in range(3) for level in (index, 5, 9)]
    _, notes = check(folder(tmp_path, [1, 2], [[0, 1, 2]], in_colours))
    assert notes == []


def test_a_class_that_never_occurs_is_marked_in_a_table(tmp_path):
    _, notes = check(folder(tmp_path, [0, 1], [[0, 0, 0, 255]] * 3))
    assert notes[0].splitlines() == [
        f"1 of 2 classes in {tmp_path / 'classes.json'} never occurs in the masks (3 of 3 read); ignored: 255 (25.0 %)",
        "      0    75.0 %  class 0",
        "      1     0.0 %  class 1  <- never occurs",
    ]
    assert notes[1] == (
        "the masks (3 of 3 read) hold 0 (75.0 %) and 255 (25.0 %): say ids 0 and 255 in classes.json instead of "
        "0 and 1, or write 0 and 1 into the masks instead"
    )


def test_ids_that_are_one_too_high_for_masks_that_label_something(tmp_path):
    _, notes = check(folder(tmp_path, [1, 2, 3], [[0, 1, 2]]))
    assert "3     0.0 %  class 3  <- never occurs" in notes[0]
    assert notes[1].endswith("if the masks count from 0, subtract 1 from each id in classes.json")


def test_of_many_classes_those_that_never_occur_are_named(tmp_path):
    (note,) = check(folder(tmp_path, range(40), [[3, 4, 5]]))[1]
    assert "37 of 40 classes in" in note
    assert note.endswith("class 0, class 1, class 2, class 6, class 7, class 8, class 9, class 10 and 29 more")


def test_masks_that_label_nearly_nothing_are_told(tmp_path):
    _, notes = check(folder(tmp_path, [1], [[1] + [0] * 199, [0] * 200]))
    assert notes[0] == "nearly nothing is labelled in the masks (2 of 2 read); ignored: 0 (99.8 %)"
    assert "lists one class and all else is ignored" in notes[1]
    assert len(notes) == 2


@pytest.mark.parametrize("count", [1, 499, 501, 1203])
def test_a_large_set_is_sampled_evenly(count):
    class Source:
        reader = census.MaskReader({1: 0}, (0,))

        def __init__(self):
            self.read = []

        def __len__(self):
            return count

        def mask(self, index):
            self.read.append(index)
            return census.Mask(str(index), np.ones((2, 3), np.uint8), 8, 1)

    source = Source()
    found = take_census(source)
    assert found.masks == len(source.read) == min(count, census.SAMPLE)
    assert found.pixels == {1: 6 * found.masks}
    gaps = np.diff(sorted({*source.read, 0, count - 1})) if count > 1 else np.ones(1)
    assert 1 <= gaps.min() <= gaps.max() <= np.ceil(count / census.SAMPLE)


def test_no_more_pixels_are_read_than_it_takes(monkeypatch):
    class Source(list):
        reader = census.MaskReader({1: 0}, (0,))

        def mask(self, index):
            return census.Mask(str(index), np.ones((10, 10), np.uint8), 8, 1)

    monkeypatch.setattr(census, "PIXELS", 5000)
    assert 50 <= take_census(Source(range(400))).masks <= 50 + 400 / census.WAVES


def test_a_label_anywhere_is_enough(tmp_path, monkeypatch):
    """A sample without one proves nothing."""
    monkeypatch.setattr(census, "SAMPLE", 2)
    found, _ = check(folder(tmp_path, [1], [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0]]))
    assert found.pixels[1] == 1
    (tmp_path / "masks/train/00002.png").unlink()
    (tmp_path / "images/train/00002.png").unlink()
    refused(DatasetConfig(name="folder", split="train", root=str(tmp_path)), "none of the masks (4 of 4 read)")


def test_a_sample_says_that_it_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(census, "SAMPLE", 2)
    _, notes = check(folder(tmp_path, [1, 2], [[1, 1]] * 5))
    assert "in the masks (2 of 5 read)" in notes[0]


def test_files_that_cannot_be_right_are_named_before_they_are_drawn(tmp_path):
    config = folder(tmp_path, [1, 2], [[1, 2]] * 4)
    mask, picture = tmp_path / "masks/train/00002.png", tmp_path / "images/train/00002.png"
    Image.new("RGB", (3, 1)).save(picture)
    refused(config, f"mask {mask} has 2 x 1 pixels but image {picture} has 3 x 1 (width x height); make them equal")
    Image.fromarray(np.array([[[1, 2, 3], [1, 2, 3]]], np.uint8)).save(mask)
    refused(config, str(mask), "mode RGB", "one channel")
    folder(tmp_path, [1, 2], [[1, 2]] * 4)
    picture.write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"{picture} is no picture"):
        check(config)


def test_painted_scenes_have_no_masks_on_disk():
    assert check_masks(open_dataset(DatasetConfig())) is None


def labels(root, name, value):
    """A prepared folder in which every pixel has one value."""
    for part in ("images", "labels"):
        (root / part / "eval").mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(root / "images/eval/a.png")
    Image.fromarray(np.full((3, 4), value, np.uint8)).save(root / "labels/eval/a.png")
    split = {"files": 1, "pixels": [], "ignored_pixels": 12}
    manifest = {
        "format": 1,
        "dataset": name,
        "ignore": 255,
        "classes": BENCHMARKS[name].classes,
        "splits": {"eval": split},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return DatasetConfig(name=name, split="eval", root=str(root))


def test_a_prepared_folder_and_its_records_must_label_something(tmp_path):
    config = labels(tmp_path / "empty" / "voc_20", "voc_20", 255)
    refused(
        config, "none of the masks (1 of 1 read)", "255 (100.0 %)", "the data set lists 0 to 19", "prepare the data set"
    )
    write_records("voc_20", tmp_path / "empty" / "voc_20", tmp_path / "records")
    refused(DatasetConfig(name="voc_20", split="eval", root=str(tmp_path / "records")), "'a' of ", "none of the masks")
    found, notes = check(labels(tmp_path / "full" / "voc_20", "voc_20", 3))
    assert found.pixels == {3: 12}
    assert notes == [], "that 19 of its classes never occur is nothing a user could mend"
    refused(labels(tmp_path / "other" / "voc_20", "voc_20", 20), "a.png holds the value 20, which is no class")


def test_segments_of_coco_panoptic_must_label_something(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations/panoptic_train2017").mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(tmp_path / "train2017/a.jpg")
    listed = {
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [{"file_name": "a.png", "segments_info": [{"id": 1, "category_id": 5}]}],
    }
    (tmp_path / "annotations/panoptic_train2017.json").write_text(json.dumps(listed))
    config = DatasetConfig(name="coco_panoptic", root=str(tmp_path))
    Image.new("RGB", (4, 3)).save(tmp_path / "annotations/panoptic_train2017/a.png")
    refused(config, "none of the masks (1 of 1 read)", "a.png, labels a single pixel")
    Image.new("RGB", (4, 3), (1, 0, 0)).save(tmp_path / "annotations/panoptic_train2017/a.png")
    assert check(config)[0].pixels == {1: 12}
    Image.new("RGB", (4, 2), (1, 0, 0)).save(tmp_path / "annotations/panoptic_train2017/a.png")
    refused(config, "4 x 2 pixels")


def test_values_beyond_sixteen_bits_are_counted_too(tmp_path):
    config = folder(tmp_path, [1], [[1, 1]])
    (tmp_path / "masks/train/00000.png").unlink()
    Image.fromarray(np.array([[1, 70_000]], np.int32)).save(tmp_path / "masks/train/00000.tif")
    refused(config, "holds the value 70000, which is no class")


def test_large_masks_are_counted_in_parts(monkeypatch):
    values = np.random.default_rng(0).integers(0, 4, (70, 90))
    for dtype in (np.uint8, ">u2", np.int32):
        counted = []
        for part in (2**22, 1000):
            monkeypatch.setattr(census, "PART", part)
            counted.append(census.count_values(census.Mask("a", values.astype(dtype), 8, 1)).pixels)
        assert counted[0] == counted[1] == {value: (values == value).sum() for value in range(4)}


def test_a_set_without_pictures_is_refused(tmp_path):
    """As array_record files may be."""

    class Nothing(list):
        reader = census.MaskReader({1: 0})
        mask = list.__getitem__

    with pytest.raises(UserError, match="holds no pictures; check its folder and its split"):
        check_masks(Dataset(Nothing(), ("cat",), None))


def test_a_message_names_few_values_of_many(tmp_path):
    message = refused(folder(tmp_path, range(1, 200, 2), [list(range(2, 250))]), "which is no class")
    assert len(re.findall(r" %\)", message)) <= census.NAMED
    assert len(message) < 700
