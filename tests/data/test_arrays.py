"""Pictures in memory: the same one is the same, in whatever form, and what could be two things is refused."""

import io

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinov3seg_jax.data.images import as_array, as_pixels, read_image
from dinov3seg_jax.data.tiff_tags import PILLOW
from dinov3seg_jax.errors import UserError

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
GREY = PICTURE[..., 0]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I", "F", "La", "RGBa"]
IN_FILES = {  # that keep the mode
    "png": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "tif": {"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "I", "F"},
}
if PILLOW >= 13:
    IN_FILES["tif"].add("YCbCr")


def of_mode(mode):
    if mode == "I;16":
        return Image.fromarray(GREY.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(GREY.astype(np.int32) * 1000 - 500)
    if mode == "F":
        return Image.fromarray(GREY.astype(np.float32) / 255)
    layers = Image.fromarray(np.dstack([PICTURE, PICTURE[..., 1]]))
    if mode == "P":
        return layers.convert("RGB").convert("P")
    return layers if mode == "RGBA" else layers.convert("LA").convert("La") if mode == "La" else layers.convert(mode)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(mode=st.sampled_from(MODES), container=st.sampled_from(["png", "tif", "webp"]), orientation=st.integers(1, 8))
def test_every_door_shows_the_same(tmp_path_factory, mode, container, orientation):
    """A path, the file's bytes, an open file, and Pillow's picture, which was black, white or without its alpha."""
    if mode not in IN_FILES.get(container, ()):
        mode, container = "RGBA", "webp"
    path = tmp_path_factory.getbasetemp() / f"door.{container}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    of_mode(mode).save(path, exif=exif, **({"lossless": True} if container == "webp" else {}))
    expected = read_image(path)
    assert expected.shape == ((5, 7, 3) if orientation < 5 else (7, 5, 3))
    content = path.read_bytes()
    for form in (path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(as_array(form), expected)
    with Image.open(path) as image, path.open("rb") as file:
        np.testing.assert_array_equal(as_array(image), expected)
        if container != "tif":  # which Pillow itself turns when it is loaded
            assert image.size == (7, 5), "the caller's picture is not turned"
        np.testing.assert_array_equal(as_array(image), expected)
        np.testing.assert_array_equal(as_array(file), expected)


def test_a_kind_that_pillow_12_misreads_is_refused(tmp_path):
    of_mode("YCbCr").save(tmp_path / "a.tif")
    if PILLOW >= 13:
        assert read_image(tmp_path / "a.tif").shape == (5, 7, 3)
    else:
        with pytest.raises(UserError, match="YCbCr, 3 x 8-bit integers.* convert it to 8-bit RGB"):
            read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_pillow(mode):
    """By the rules for files: alpha on white, deep grey by its range; and the caller's picture stays what it is."""
    image = of_mode(mode)
    before = image.copy()
    layers = of_mode("RGBA") if mode in ("RGBA", "RGBa", "RGBX") else of_mode("LA")
    shares = np.asarray(layers.convert("RGBA")) / 255
    on_white = 255 * (shares[..., :3] * shares[..., 3:] + 1 - shares[..., 3:])
    grey = np.repeat(GREY[..., None], 3, -1)
    stretched = np.rint((GREY.astype(float) - GREY.min()) * 255 / (int(GREY.max()) - int(GREY.min())))
    expected = {
        **dict.fromkeys(["LA", "La", "RGBA", "RGBa"], on_white),
        **dict.fromkeys(["I;16", "F"], grey),
        "I": np.repeat(stretched[..., None], 3, -1),
        "L": np.asarray(of_mode("RGBA").convert("L").convert("RGB")),
    }
    plain = np.asarray(image.convert("RGB")) if mode not in expected else None
    found = as_array(image)
    assert np.abs(found - expected.get(mode, plain)).max() <= (4 if mode in ("RGBa", "La") else 1)
    assert image == before


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_arrays(make):
    def shown(array):
        return as_array(make(array)).tolist()

    rgb, grey = PICTURE.tolist(), np.repeat(GREY[..., None], 3, -1).tolist()
    assert shown(PICTURE) == rgb
    assert shown(GREY) == shown(GREY[..., None]) == grey
    assert shown(PICTURE.astype(np.int32)) == shown(PICTURE.astype(np.float32)) == rgb
    assert shown(PICTURE.astype(np.float32) / 255) == shown(PICTURE.astype(np.uint16) * 257) == rgb
    assert shown(np.array([[True, False]])) == [[[255] * 3, [0] * 3]]
    layers = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert shown(layers) == [[[10, 20, 30], [255] * 3, [204] * 3]]
    assert shown(np.float32(layers) / 255) == shown(layers)
    assert shown(np.asarray([[0, 1]], ml_dtypes.bfloat16)) == [[[0] * 3, [255] * 3]]


def test_rgb_bytes_are_not_copied():
    assert as_array(PICTURE) is PICTURE


class Tensor:
    """What a tensor of another library is to NumPy."""

    def __init__(self, array, error=None):
        self.array, self.error = array, error

    def __array__(self, dtype=None, copy=None):
        if self.error:
            raise self.error
        return self.array


class Exchanged:
    """What only the common protocol of array libraries gives."""

    def __dlpack__(self, **options):
        return PICTURE.__dlpack__(**options)

    def __dlpack_device__(self):
        return PICTURE.__dlpack_device__()


def test_tensors():
    np.testing.assert_array_equal(as_array(Tensor(PICTURE)), PICTURE)
    np.testing.assert_array_equal(as_array(Exchanged()), PICTURE)
    with pytest.raises(UserError, match=r"a Tensor, gives no NumPy array \(on a GPU\); bring it to the CPU"):
        as_array(Tensor(PICTURE, TypeError("on a GPU")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 5, 7), np.uint8), r"uint8 \[3, 5, 7\], channels first; transpose it"),
        (np.zeros((1, 5, 7, 3), np.uint8), "a batch; give its pictures one by one"),
        (np.zeros((5, 7, 2), np.uint8), r"uint8 \[5, 7, 2\]; give RGB bytes"),
        (np.zeros(5, np.uint8), r"uint8 \[5\]; give RGB bytes"),
        (np.float64(3), r"float64 \[\]; give RGB bytes"),
        (np.zeros((0, 7, 3), np.uint8), "which is empty"),
        (np.zeros((5, 7, 3), complex), "which holds no shades"),
        (np.full((5, 7), "a"), "which holds no shades"),
        (np.full((5, 7), None), "which holds no shades"),
        (np.full((5, 7), np.nan), "holds NaN or infinite values"),
        (np.array([[-2.1, 2.6]]), r"holds values from -2.1 to 2.6; give values in 0..1 or 0..255"),
        (np.array([[0, 300]]), "holds values from 0 to 300"),
        (np.array([[0, 1.01]]), "its largest value is 1.01; clip it to 0..1"),
        (np.ma.masked_array(PICTURE, PICTURE > 9), "is a masked array; fill what is masked"),
        (Image.new("RGB", (0, 5)), "the image has 0 x 5 pixels"),
        (None, "the image is None; give a path"),
        (7, "the image is a int; give a path"),
        (PICTURE.tolist(), "the image is a list; give a path"),
        (b"", "the image is empty: no byte of it is left to read"),
        (b"hello", "the image is no picture that can be read"),
        (io.BytesIO(), "is empty: no byte of it"),
        (io.StringIO("hello"), "is a file that is open as text; open it with 'rb'"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(UserError, match=message) as caught:
        as_array(given)
    assert "\n" not in str(caught.value)


def test_a_closed_file(tmp_path):
    file = (tmp_path / "a").open("wb")
    file.close()
    with pytest.raises(UserError, match="is a file that cannot be read .*; open it with 'rb'"):
        as_array(file)


def test_what_pillow_opened_and_would_read_wrongly(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 4, 5), np.uint16), photometric="rgb", planarconfig="separate")
    with (
        Image.open(tmp_path / "a.tif") as image,
        pytest.raises(UserError, match="Pillow reads wrongly .*; give its path"),
    ):
        as_array(image)


def test_damage_that_shows_when_a_picture_of_pillow_is_read(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with pytest.raises(UserError, match="the image is truncated or damaged"):
        as_array(Image.open(io.BytesIO(content[: len(content) // 2])))


def test_no_data_come_along(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 9]], np.uint8), extratags=[(42113, "s", 0, "0", True)])
    assert as_pixels(tmp_path / "a.tif").valid.tolist() == [[False, True]]
