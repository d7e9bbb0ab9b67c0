"""Every kind of picture a user may have is read, and every broken one is refused in one sentence."""

import errno
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.data import images
from dinov3seg_jax.data.images import list_images, read_image
from dinov3seg_jax.errors import UserError

COLORS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [10, 100, 200], [0, 0, 0]]], np.uint8)
GREY = np.array([[0, 100, 255], [17, 34, 51]], np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def save(folder, picture, name="picture.png", **options):
    path = folder / name
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)
    return path


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.tga", "a.PNG", "a.gif"])
def test_lossless_formats(tmp_path, name):
    picture = read_image(save(tmp_path, COLORS, name))
    assert picture.dtype == np.uint8
    assert picture.flags.writeable
    np.testing.assert_array_equal(picture, COLORS)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif", "a.jp2"])
def test_other_formats(tmp_path, name):
    flat = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    picture = read_image(save(tmp_path, flat, name))
    assert np.abs(picture.astype(int) - flat).max() <= 4


def test_the_content_decides_not_the_suffix(tmp_path):
    path = save(tmp_path, COLORS, "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(str(path)), COLORS)


def test_grey(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path, GREY)), grey(GREY))


def test_one_bit(tmp_path):
    picture = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(read_image(save(tmp_path, picture)), grey([[0, 255, 0]]))


def test_palette(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    assert picture.mode == "P"
    assert read_image(save(tmp_path, picture)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert read_image(save(tmp_path, picture, transparency=0)).tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_transparent_pixels_become_white(tmp_path):
    layered = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert read_image(save(tmp_path, layered)).tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    grey_and_alpha = Image.fromarray(layered).convert("LA")
    np.testing.assert_array_equal(read_image(save(tmp_path, grey_and_alpha)), grey([[76, 255, 204]]))


def test_transparent_grey_value(tmp_path):
    np.testing.assert_array_equal(
        read_image(save(tmp_path, np.array([[9, 80]], np.uint8), transparency=9)), grey([[255, 80]])
    )


def test_cmyk(tmp_path):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for name in ("a.tif", "a.jpg"):
        red = read_image(save(tmp_path, picture, name))
        assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 256, 257, 25700, 65535]], np.uint16)
    np.testing.assert_array_equal(read_image(save(tmp_path, values, name)), grey([[0, 1, 1, 100, 255]]))


def test_16_bit_grey_of_either_byte_order(tmp_path):
    pixels = np.array([[0, 257, 65535]], np.uint16)
    big_endian = Image.frombytes("I;16B", (3, 1), pixels.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(save(tmp_path, big_endian, "a.tif")), grey([[0, 1, 255]]))


def png_of_16_bits(color, values, transparent=b""):
    """By the standard: chunks, and rows that begin with the number of their filter, 0 here."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = [chunk(name, content) for name, content in chunks if content or name == b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_16_bit_colours_follow_the_rule_of_grey(tmp_path):
    """Pillow cuts them: 65407 became 255."""
    values = np.random.default_rng(0).integers(0, 65536, (5, 6, 4))
    values[0, 0], values[0, 1] = (65407, 128, 129, 65535), (128, 129, 65407, 0)
    share, alpha = values[..., :3] / 65535, values[..., 3:] / 65535
    (tmp_path / "rgb.png").write_bytes(png_of_16_bits(2, values[..., :3]))
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), np.rint(255 * share))
    (tmp_path / "rgba.png").write_bytes(png_of_16_bits(6, values))
    assert np.abs(read_image(tmp_path / "rgba.png") - 255 * (share * alpha + 1 - alpha)).max() < 1.5
    (tmp_path / "rgb.ppm").write_bytes(b"P6 6 5 65535\n" + values[..., :3].astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.ppm"), np.rint(255 * share))


def test_a_transparent_value_of_16_bits(tmp_path):
    values = np.array([[[1, 2, 3], [1, 2, 4]]])
    (tmp_path / "a.png").write_bytes(png_of_16_bits(2, values * 257, np.array([1, 2, 3], ">u2").tobytes()))
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 2, 3], [1, 2, 4]]]
    (tmp_path / "b.png").write_bytes(png_of_16_bits(2, values * 257, (np.array([1, 2, 3], ">u2") * 257).tobytes()))
    assert read_image(tmp_path / "b.png").tolist() == [[[255] * 3, [1, 2, 4]]]
    (tmp_path / "c.png").write_bytes(png_of_16_bits(0, values[..., 2] * 257, np.array([3 * 257], ">u2").tobytes()))
    assert read_image(tmp_path / "c.png").tolist() == [[[255] * 3, [4] * 3]]


def test_floats_of_a_portable_map(tmp_path):
    """Which became black."""
    (tmp_path / "a.pfm").write_bytes(b"Pf\n3 1\n-1.0\n" + np.array([0, 0.2, 1], "<f4").tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "a.pfm"), grey([[0, 51, 255]]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 7, 255]], np.int32), [[0, 7, 255]]),
        (np.array([[1, 0, 1]], np.int32), [[1, 0, 1]]),
        (np.array([[-100, 0, 155]], np.int32), [[0, 100, 255]]),
        (np.array([[0, 1000, 2550]], np.int32), [[0, 100, 255]]),
        (np.array([[300, 300, 300]], np.int32), [[0, 0, 0]]),
        (np.array([[0, 0.2, 1]], np.float32), [[0, 51, 255]]),
        (np.array([[0, 7.4, 255]], np.float32), [[0, 7, 255]]),
        (np.array([[-1, 0, 1]], np.float32), [[0, 128, 255]]),
        (np.array([[np.nan, 0.2, np.inf]], np.float32), [[0, 51, 0]]),
        (np.array([[np.nan, np.nan, np.nan]], np.float32), [[0, 0, 0]]),
    ],
)
def test_32_bit_grey(tmp_path, values, expected):
    picture = read_image(save(tmp_path, values, "a.tif"))
    np.testing.assert_array_equal(picture, grey(expected))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda picture: picture),
        (2, lambda picture: picture[:, ::-1]),
        (3, lambda picture: picture[::-1, ::-1]),
        (6, lambda picture: np.rot90(picture, -1)),
        (8, np.rot90),
    ],
)
def test_exif_rotation_is_applied(tmp_path, name, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    np.testing.assert_array_equal(read_image(save(tmp_path, COLORS, name, exif=exif, **options)), upright(COLORS))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    path = save(tmp_path, NOISE, "a.jpg", exif=b"Exif\0\0II*\0garbage that is no directory")
    assert read_image(path).shape == NOISE.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (4, 6000), (6000, 4)])
def test_extreme_shapes(tmp_path, shape):
    assert read_image(save(tmp_path, np.zeros((*shape, 3), np.uint8))).shape == (*shape, 3)


def test_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    path = save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path):
    refused(tmp_path / "absent.png", "does not exist")


def test_a_folder_is_no_picture(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty(tmp_path):
    (tmp_path / "a.png").touch()
    refused(tmp_path / "a.png", "is empty")


@pytest.mark.parametrize("content", [b"hello", b"\0" * 1000, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_not_a_picture(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "is no picture")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.webp", "a.avif", "a.gif", "a.ppm"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated(tmp_path, name, kept):
    path = save(tmp_path, NOISE, name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refused(path, "truncated or damaged|is no picture")


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 30000 20000 255\n")
    refused(tmp_path / "a.pgm", r"30000 x 20000 pixels, more than 400,000,000")


def test_more_pixels_than_pillow_allows_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(save(tmp_path, NOISE)).shape == NOISE.shape
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(images, "MAX_PIXELS", 1999)
    refused(tmp_path / "picture.png", "more than 1,999")


def test_a_picture_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", fail)
    refused(save(tmp_path, NOISE), "does not fit into memory at 50 x 40 pixels; make it smaller")


def test_what_reads_rasters_is_loaded_when_there_are_some(tmp_path):
    path = save(tmp_path, NOISE, "a.jpg")
    code = f"from dinov3seg_jax.data.images import read_image; read_image({str(path)!r})"
    heavy = "import sys; assert not {'rasterio', 'pillow_heif', 'tifffile', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], check=True)


def test_list_of_a_file(tmp_path):
    path = tmp_path / "any.thing"
    path.touch()
    assert list_images(path) == [path]


def test_list_of_a_folder(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a.tiff", "c.txt", ".hidden/x.png", "._a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert list_images(str(tmp_path)) == [tmp_path / name for name in ("a.tiff", "b/10.png", "b/2.JPG")]


def test_list_of_links(tmp_path):
    """Those that lead nowhere or in a circle are listed, and fail when they are read; so are no pipes."""
    (tmp_path / "folder").mkdir()
    save(tmp_path / "folder", NOISE)
    for name, target in (("a.png", "absent"), ("b.png", "b.png"), ("c", "folder"), ("d.png", "folder/picture.png")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.png")
    below = ["a.png", "b.png", "d.png", "folder/picture.png"]
    assert list_images(tmp_path) == [tmp_path / name for name in below]
    refused(tmp_path / "a.png", "a.png does not exist")
    refused(tmp_path / "b.png", "b.png cannot be read")


@pytest.mark.parametrize("closed", ["", "b/c"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, closed):
    """But not a hidden one."""
    save(tmp_path, NOISE)
    scan = os.scandir

    def scan_others(path):
        if path in (str(tmp_path / closed), str(tmp_path / ".b")):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    for name in ("b/c", ".b"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scan_others)  # the superuser may read all
    with pytest.raises(
        UserError, match=re.escape(f"the folder {tmp_path / closed} cannot be read (Permission denied)")
    ):
        list_images(tmp_path)


def test_list_of_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        list_images(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read"):
        list_images(tmp_path / ("a" * 300))


def test_list_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "absent")
