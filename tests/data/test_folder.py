"""Folders of images and masks: pairing, values, and a sentence for each thing that can be wrong."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.data.folder import ImageFolder
from dinov3seg_jax.errors import UserError

CLASSES = {1: 0, 7: 1, 300: 2}
IDS = np.array([[0, 1, 1], [7, 7, 0]])
LABEL = [[-1, 0, 0], [1, 1, -1]]


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        (folder / "sub").mkdir(parents=True)
    return images, masks


def _add(folders: tuple[Path, Path], name: str, mask: Image.Image, suffix: str = ".png", size=(3, 2)) -> None:
    Image.new("RGB", size, (10, 20, 30)).save(folders[0] / f"{name}.png")
    mask.save(folders[1] / f"{name}{suffix}")


def _grey(ids=IDS) -> Image.Image:
    return Image.fromarray(np.asarray(ids, np.uint8))


def _palette() -> Image.Image:
    mask = Image.fromarray(IDS.astype(np.uint8))
    mask.putpalette([value for index in range(256) for value in (255 - index, index, 40)])
    return mask


def test_pairs_are_sorted_by_relative_path(folders):
    _add(folders, "sub/a", _grey())
    _add(folders, "b", _grey())
    source = ImageFolder(*folders, CLASSES, ignored_ids=(0,))
    assert [source[i]["name"] for i in range(len(source))] == ["b", "sub/a"]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize(
    ("mask", "suffix"),
    [
        (_grey(), ".png"),
        (_grey(), ".tif"),
        (Image.fromarray(IDS.astype(np.uint16)), ".png"),
        (Image.fromarray(IDS.astype(np.uint16)), ".tiff"),
        (_palette(), ".png"),
    ],
    ids=["8 bit png", "8 bit tiff", "16 bit png", "16 bit tiff", "palette"],
)
def test_values_become_classes(folders, mask, suffix):
    _add(folders, "a", mask, suffix)
    example = ImageFolder(*folders, CLASSES, ignored_ids=(0,))[0]
    np.testing.assert_array_equal(example["label"], LABEL)
    assert example["label"].dtype == np.int32
    assert example["image"].shape == (2, 3, 3)
    assert example["image"].dtype == np.uint8


def test_sixteen_bit_values_are_not_cut(folders):
    _add(folders, "a", Image.fromarray(np.full((2, 3), 300, np.uint16)))
    assert (ImageFolder(*folders, CLASSES)[0]["label"] == 2).all()


def test_a_listed_value_is_not_ignored(folders):
    _add(folders, "a", _grey())
    label = ImageFolder(*folders, {0: 0, 1: 1, 7: 2}, ignored_ids=(0, 255))[0]["label"]
    np.testing.assert_array_equal(label, [[0, 1, 1], [2, 2, 0]])


def test_hidden_and_other_files_are_passed_over(folders):
    _add(folders, "a", _grey())
    (folders[0] / "._a.png").write_bytes(b"resource fork")
    (folders[1] / "readme.txt").write_text("masks")
    assert len(ImageFolder(*folders, CLASSES)) == 1


def test_an_image_folder_of_several_splits_is_asked_for_one(folders):
    _add(folders, "b", _grey())
    Image.new("RGB", (3, 2)).save(folders[0] / "a.png")
    source = ImageFolder(*folders, CLASSES, ignored_ids=(0,), shared_images=True)
    assert [source[index]["name"] for index in range(len(source))] == ["b"]
    _grey().save(folders[1] / "c.png")
    with pytest.raises(UserError, match="c.png has no image"):
        ImageFolder(*folders, CLASSES, ignored_ids=(0,), shared_images=True)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 16), (np.uint16, 8)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_of_another_width_are_refused(folders, dtype, bits, suffix):
    _add(folders, "a", Image.fromarray(IDS.astype(dtype)), suffix)
    _sentence(folders, f"{24 - bits} bits a pixel where {bits} are due", f"a{suffix}", bits=(bits,))


@pytest.mark.parametrize("which", [0, 1], ids=["image", "mask"])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(folders, which):
    _add(folders, "a", _grey())
    _png(folders[which] / "a.png", 60_000, 60_000, bits=8, rows=b"")
    _sentence(folders, str(folders[which] / "a.png"), "60000 x 60000 pixels, more than 400,000,000")


def _sentence(folders, *parts: str, **options: object) -> None:
    with pytest.raises(UserError) as error:
        _ = ImageFolder(*folders, CLASSES, ignored_ids=(0,), **options)[0]
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", "make it smaller", "copy it again"))
    for part in parts:
        assert part in message, message


def test_missing_folder(folders):
    _sentence((folders[0] / "nowhere", folders[1]), "nowhere", "does not exist")


def test_empty_folder(folders):
    _sentence(folders, str(folders[0]), "no images")


def test_nothing_matches(folders):
    Image.new("RGB", (3, 2)).save(folders[0] / "a.png")
    _grey().save(folders[1] / "a_mask.png")
    _sentence(folders, "no image", "same name")


def test_image_without_mask_names_the_first(folders):
    _add(folders, "b", _grey())
    for name in ("d", "c"):
        Image.new("RGB", (3, 2)).save(folders[0] / f"{name}.png")
    _sentence(folders, str(folders[0] / "c.png"), "no mask")


def test_mask_without_image(folders):
    _add(folders, "b", _grey())
    _grey().save(folders[1] / "sub" / "c.png")
    _sentence(folders, str(folders[1] / "sub" / "c.png"), "no image")


def test_two_files_of_one_name(folders):
    _add(folders, "a", _grey())
    Image.new("RGB", (3, 2)).save(folders[0] / "a.jpg")
    _sentence(folders, "a.jpg", "a.png", "same name")


def test_sizes_differ(folders):
    _add(folders, "a", _grey(), size=(30, 20))
    _sentence(folders, "3 x 2", "30 x 20", str(folders[1] / "a.png"))


@pytest.mark.parametrize("value", [9, 255])
def test_undeclared_value(folders, value):
    _add(folders, "a", _grey([[1, value, 1], [1, 1, 1]]))
    _sentence(folders, str(folders[1] / "a.png"), f"value {value}", "declare")


def test_a_value_beyond_sixteen_bits(folders):
    _add(folders, "a", Image.fromarray(np.full((2, 3), 70000, np.int32)), ".tif")
    _sentence(folders, "value 70000")


def test_colour_mask(folders):
    _add(folders, "a", Image.new("RGB", (3, 2)))
    _sentence(folders, "one channel")


def test_four_bit_mask_is_refused_as_pillow_would_scale_it(folders):
    _add(folders, "a", _grey())
    _four_bit_png(folders[1] / "a.png")
    _sentence(folders, "fewer than 8 bits")


def _four_bit_png(path: Path) -> None:
    _png(path, 3, 2, bits=4, rows=b"\x00\x01\x10" * 2)


def _png(path: Path, width: int, height: int, bits: int, rows: bytes) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_truncated_files(folders):
    rng = np.random.default_rng(0)
    _add(folders, "a", _grey(rng.integers(0, 2, (64, 64)) * 7), size=(64, 64))
    whole = (folders[1] / "a.png").read_bytes()
    (folders[1] / "a.png").write_bytes(whole[: len(whole) // 2])
    _sentence(folders, str(folders[1] / "a.png"), "damaged")
