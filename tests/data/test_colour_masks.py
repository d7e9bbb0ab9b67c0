"""Masks in colours, and the tables of these."""

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.census import check_masks
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.errors import UserError

CAT, RUG, OTHER = (255, 0, 0), (0, 128, 64), (1, 2, 3)
CSV = "name,r,g,b\nrug-merged,0,128,64\ncat,255,0,0\n"  # labels in the order of rows, not of colours


def write(root, colours=((CAT, RUG),), table=CSV, name="palette.csv", images="images/train", masks="masks/train"):
    pixels = np.array(colours, np.uint8)
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", pixels.shape[1::-1]).save(root / images / "a.jpg")
    Image.fromarray(pixels).save(root / masks / "a.png")
    (root / name).write_text(table)
    return DatasetConfig(name="colour_masks", root=str(root))


def label(config):
    return open_dataset(config).source[0]["label"]


def sentence(config, *parts):
    with pytest.raises(UserError) as error:
        label(config)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("palette.csv", CSV),
        ("class_dict.csv", CSV),
        ("classes.csv", "name,color\nrug-merged,#008040\ncat,#ff0000\n"),
        ("palette.json", '{"rug-merged": [0, 128, 64], "cat": [255, 0, 0]}'),
        ("classes.json", '[{"name": "rug-merged", "color": "#008040"}, {"name": "cat", "color": "red"}]'),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nrug-merged:0,128,64::\n\ncat:255,0,0::\n"),
    ],
)
def test_colours_become_classes_in_the_order_of_the_table(tmp_path, name, table):
    config = write(tmp_path, table=table, name=name)
    dataset = open_dataset(config)
    assert dataset.classes == ("rug", "cat")
    assert dataset.listed == tmp_path / name
    np.testing.assert_array_equal(dataset.source[0]["label"], [[1, 0]])
    assert dataset.source[0]["label"].dtype == np.int32


def test_a_colour_that_no_row_has_is_refused_or_ignored(tmp_path):
    config = write(tmp_path, [[CAT, OTHER, OTHER, (9, 9, 9)]])
    sentence(config, "a.png holds the colour #010203 on 2 pixels and 1 other", "palette.csv does not list", "add a row")
    ignoring = DatasetConfig(name="colour_masks", root=config.root, unlisted="ignore")
    np.testing.assert_array_equal(label(ignoring), [[1, -1, -1, -1]])
    notes = []
    assert check_masks(open_dataset(ignoring), notes.append).pixels == {0: 3, 2: 1}


def test_smoothed_masks_get_a_mend_of_their_own(tmp_path):
    sentence(write(tmp_path, [[(level, 0, 0) for level in range(30)]]), "smoothed edges")


def test_masks_that_show_nothing_of_the_table_are_refused_before_training(tmp_path):
    config = write(tmp_path, [[OTHER]])
    with pytest.raises(UserError, match="shows a class of .*palette.csv; make one fit the other"):
        check_masks(open_dataset(DatasetConfig(name="colour_masks", root=config.root, unlisted="ignore")))


def test_other_pixel_types(tmp_path):
    config = write(tmp_path, table="name,r,g,b\ndark,7,7,7\nbright,200,200,200\n")
    mask = tmp_path / "masks/train/a.png"
    grey = Image.fromarray(np.array([[7, 200]], np.uint8))
    indexed = Image.fromarray(np.array([[1, 0]], np.uint8))
    indexed.putpalette([200, 200, 200, 7, 7, 7])
    for picture in (grey, indexed, grey.convert("RGBA")):
        picture.save(mask)
        np.testing.assert_array_equal(label(config), [[0, 1]])
    clear = grey.convert("RGBA")
    clear.putalpha(9)
    for picture, part in ((clear, "transparent in places"), (grey.convert("I;16"), "mode I;16")):
        picture.save(mask)
        sentence(config, part)
    Image.new("RGB", (2, 1), (7, 7, 7)).save(mask, "JPEG")
    sentence(config, "compressed as JPEG")
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40, 3), np.uint8)).save(mask)
    mask.write_bytes(mask.read_bytes()[:1000])
    sentence(config, "a.png is damaged")


def test_masks_in_a_mirror_of_their_own_are_turned(tmp_path):
    config = write(tmp_path)
    turned = Image.Exif()
    turned[0x112] = 2
    Image.fromarray(np.array([[CAT, RUG]], np.uint8)).save(tmp_path / "masks/train/a.png", exif=turned)
    np.testing.assert_array_equal(label(config), [[0, 1]])


@pytest.mark.parametrize(
    ("name", "table", "part"),
    [
        ("palette.csv", "name,r,g,b\ncat,1,2,3\ncat,4,5,6\n", "lists the name cat 2 times"),
        ("palette.csv", "name,r,g,b\ncat,1,2,3\ndog,1,2,3\n", "lists the colour #010203 2 times"),
        ("palette.json", '["cat", "dog"]', "gives 'cat' no colour"),
        ("labelmap.txt", "cat\n", "line 1 of"),
        ("labelmap.txt", "cat:blood::\n", "which is no colour"),
        ("labelmap.txt", "# none\n", "lists no classes"),
        ("labelmap.txt", "caf\udce9:1,2,3::\n", "cannot be read"),
        ("notes.md", "", "has no table of colours"),
    ],
)
def test_a_table_that_is_none(tmp_path, name, table, part):
    config = write(tmp_path, table="", name="unread.md")
    (tmp_path / name).write_bytes(table.encode("utf-8", "surrogateescape"))
    sentence(config, part)


def test_cvat_and_voc(tmp_path):
    places = {"images": "JPEGImages", "masks": "SegmentationClass"}
    config = write(tmp_path, table="cat:255,0,0::\nrug:0,128,64::\n", name="labelmap.txt", **places)
    np.testing.assert_array_equal(label(config), [[0, 1]])
    Image.new("RGB", (2, 1)).save(tmp_path / "JPEGImages/unlabelled.jpg")
    Image.new("RGB", (2, 1)).save(tmp_path / "JPEGImages/b.jpg")
    Image.new("RGB", (2, 1), RUG).save(tmp_path / "SegmentationClass/b.png")
    lists = tmp_path / "ImageSets/Segmentation"
    other = DatasetConfig(name="colour_masks", root=config.root, split="val")
    sentence(other, "there is no list")
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("a\nb\n")
    assert len(open_dataset(config).source) == 2
    (lists / "train.txt").write_text("b\n")
    dataset = open_dataset(config)
    assert len(dataset.source) == 1
    assert dataset.source[0]["name"] == dataset.source.files(0)[0] == "b"
    np.testing.assert_array_equal(dataset.source[0]["label"], [[1, 1]])
    assert check_masks(dataset).pixels == {2: 2}
    with pytest.raises(IndexError):
        dataset.source[1]
    sentence(other, "there are the splits default, train")
    (lists / "val.txt").write_text("c\n")
    sentence(other, "lists c, of which there is no mask")
