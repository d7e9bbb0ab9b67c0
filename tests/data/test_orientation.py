"""A mask keeps to its picture's pixels whatever way up either is stored, whoever reads them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.census import check_masks
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.images import read_header, read_turned
from dinov3seg_jax.data.label_maps import original_ids
from dinov3seg_jax.data.orientation import turn
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.data.tfds_builder import write_records
from dinov3seg_jax.errors import UserError

ORIENTATIONS = range(1, 9)
QUARTER_TURNS = range(5, 9)
CLASSES = np.array([[0, 1, 2], [3, 4, 4]])  # no turn but the right one leaves it as it is
GREYS = (CLASSES * 40).repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)  # JPEG keeps its blocks
IDS = (CLASSES + 1).repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)


def exif(orientation: int) -> Image.Exif:
    noted = Image.Exif()
    noted[0x0112] = orientation
    return noted


def save(path: Path, pixels: np.ndarray, orientation: int | None = None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options | ({} if orientation is None else {"exif": exif(orientation)}))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """As Pillow shows it, from a file in memory."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif(orientation))
    return np.asarray(ImageOps.exif_transpose(Image.open(file)))


def folder(root: Path) -> DatasetConfig:
    (root / "classes.json").write_text(
        json.dumps([{"id": number, "name": f"class {number}"} for number in range(1, 6)])
    )
    return DatasetConfig(name="folder", split="val", root=str(root))


def assert_on_its_pixels(config: DatasetConfig, orientation: int) -> None:
    dataset = open_dataset(config)
    example = dataset.source[0]
    shown = np.rint(example["image"][..., 0] / 40).astype(int)
    np.testing.assert_array_equal(shown, upright(GREYS, orientation) // 40)
    np.testing.assert_array_equal(example["label"], shown)
    assert example["label"].dtype == np.int32
    assert example["label"].flags.c_contiguous
    check_masks(dataset)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_arrays_are_turned_as_pillow_turns_pictures(orientation):
    np.testing.assert_array_equal(turn(GREYS, orientation), upright(GREYS, orientation))
    colours = np.stack([GREYS, GREYS + 1, GREYS + 2], axis=-1)
    np.testing.assert_array_equal(turn(colours, orientation), upright(colours, orientation))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("own", [False, True], ids=["without a note", "with its own note"])
@pytest.mark.parametrize("picture", ["png", "jpg", "tif"])
def test_a_mask_stored_as_its_picture(tmp_path, orientation, own, picture):
    save(tmp_path / f"images/val/a.{picture}", GREYS, orientation, **({"quality": 95} if picture == "jpg" else {}))
    for suffix, options in (("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})):
        mask = tmp_path / f"masks/val/a.{suffix}"
        save(mask, IDS, orientation if own else None, **options)
        assert_on_its_pixels(folder(tmp_path), orientation)
        mask.unlink()


@pytest.mark.parametrize("orientation", QUARTER_TURNS)
def test_a_mask_that_was_drawn_on_the_upright_picture(tmp_path, orientation):
    """Its size says so."""
    save(tmp_path / "images/val/a.jpg", GREYS, orientation, quality=95)
    save(tmp_path / "masks/val/a.png", upright(IDS, orientation))
    assert_on_its_pixels(folder(tmp_path), orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_with_a_note_beside_a_picture_without(tmp_path, orientation):
    save(tmp_path / "images/val/a.jpg", upright(GREYS, orientation), quality=95)
    save(tmp_path / "masks/val/a.tif", IDS, orientation)
    dataset = open_dataset(folder(tmp_path))
    np.testing.assert_array_equal(dataset.source[0]["label"], upright(IDS, orientation).astype(int) - 1)
    check_masks(dataset)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_mask_of_neither_size_is_refused_by_its_header_and_by_its_pixels(tmp_path, orientation):
    save(tmp_path / "images/val/a.jpg", GREYS, orientation)
    save(tmp_path / "masks/val/a.png", IDS[:, :-1])
    dataset = open_dataset(folder(tmp_path))
    shown = "32 x 48" if orientation == 6 else "48 x 32"
    for read in (lambda: dataset.source[0], lambda: check_masks(dataset)):
        with pytest.raises(
            UserError, match=f"a.png has 47 x 32 pixels but image .*a.jpg has {shown} .* make them equal"
        ):
            read()


@pytest.mark.parametrize("orientation", [3, 6])
def test_segments_of_coco_panoptic(tmp_path, orientation):
    save(tmp_path / "train2017/a.jpg", GREYS, orientation, quality=95)
    segments = np.stack([IDS, np.zeros_like(IDS), np.zeros_like(IDS)], axis=-1)
    save(tmp_path / "annotations/panoptic_train2017/a.png", segments)
    numbers = range(1, 6)
    listed = {
        "categories": [{"id": 10 * number, "name": f"class {number}"} for number in numbers],
        "annotations": [
            {"file_name": "a.png", "segments_info": [{"id": number, "category_id": 10 * number} for number in numbers]}
        ],
    }
    (tmp_path / "annotations/panoptic_train2017.json").write_text(json.dumps(listed))
    assert_on_its_pixels(DatasetConfig(name="coco_panoptic", root=str(tmp_path)), orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_benchmark_from_its_tree_to_records(tmp_path, orientation):
    tree = tmp_path / "ADEChallengeData2016"
    save(tree / "images/validation/ADE_val_00000001.jpg", GREYS, orientation, quality=95)
    save(tree / "annotations/validation/ADE_val_00000001.png", IDS)
    config = DatasetConfig(name="ade20k_150", split="eval", root=str(tmp_path))
    assert_on_its_pixels(config, orientation)
    prepare("ade20k_150", [tree], tmp_path / "ade20k_150", splits=["eval"], allow_partial=True)
    assert_on_its_pixels(config, orientation)
    if orientation in (1, 3, 6):
        write_records("ade20k_150", tmp_path / "ade20k_150", tmp_path / "records")
        assert_on_its_pixels(
            DatasetConfig(name="ade20k_150", split="eval", root=str(tmp_path / "records")), orientation
        )


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_is_shrunk_in_preparation(tmp_path, orientation):
    source = tmp_path / "ADE20K_2021_17_01"
    name = source / "images/ADE/validation/home/room/ADE_val_00000001"
    values = np.array(original_ids("ade_847")[:5])
    large = CLASSES.repeat(300, axis=0).repeat(300, axis=1)  # 600 x 900
    save(name.with_suffix(".jpg"), (large * 40).astype(np.uint8), orientation)
    colours = np.stack([values[large] // 256 * 10, values[large] % 256, 0 * large], axis=-1)
    save(name.with_name(f"{name.name}_seg.png"), colours.astype(np.uint8))
    prepare("ade20k_847", [source], tmp_path / "out", splits=["eval"], allow_partial=True)
    example = open_dataset(DatasetConfig(name="ade20k_847", split="eval", root=str(tmp_path / "out"))).source[0]
    label, small = example["label"], upright(CLASSES.astype(np.uint8), orientation)
    assert label.shape == tuple(256 * side for side in small.shape)
    np.testing.assert_array_equal(label[128::256, 128::256], small)
    shown = np.rint(example["image"][..., 0] / 40)
    assert (shown == label).mean() > 0.98  # all but the edges


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB", "RGBA"])
def test_raw_tiffs_are_not_scrambled(tmp_path, orientation, mode):
    """Pillow maps those of some modes into memory, by their upright size."""
    picture = Image.fromarray(GREYS.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(GREYS).convert(mode)
    if mode == "P":
        picture.putpalette([level for level in range(256) for _ in range(3)])
    assert picture.mode == mode
    picture.save(tmp_path / "a.tif", exif=exif(orientation))
    pixels, turned = read_turned(tmp_path / "a.tif", "a")
    np.testing.assert_array_equal(pixels[..., 0], upright(GREYS, orientation))
    assert turned == orientation
    assert read_header(tmp_path / "a.tif", "a") == (pixels.shape[:2], orientation)


@pytest.mark.parametrize("noted", [0, 9, 400])
def test_notes_that_mean_nothing_turn_nothing(tmp_path, noted):
    save(tmp_path / "a.jpg", GREYS, noted)
    assert read_header(tmp_path / "a.jpg", "a") == (GREYS.shape, 1)
    assert read_turned(tmp_path / "a.jpg", "a")[1] == 1
