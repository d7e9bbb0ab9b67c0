"""TIFFs of every kind: the pixels are those that a plain reference says, by whichever library they are read."""

import io
import sys

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from dinov3seg_jax.data.images import as_array, read_image, read_pixels
from dinov3seg_jax.data.scenes import View
from dinov3seg_jax.data.stretch import Stretch
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.pictures.rasters import open_raster
from tests.data.rasters import PLACE, save_raster

KINDS = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"]
UPRIGHT = {  # what the first row and the first column of the stored picture become, by the standard's words
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: np.swapaxes(picture, 0, 1),
    6: lambda picture: np.rot90(picture, -1),
    7: lambda picture: np.rot90(np.swapaxes(picture, 0, 1), 2),
    8: lambda picture: np.rot90(picture),
}


def numbers(kind, shape, seed=0):
    rng, dtype = np.random.default_rng(seed), np.dtype(kind)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def shades(values):
    """The rule of `read_image`, in floats."""
    full = {"uint8": (0, 255), "uint16": (0, 65535), "float16": (0, 1), "float32": (0, 1), "float64": (0, 1)}
    exact = values.astype(np.float64)
    low, high = full.get(values.dtype.name, (exact.min(), exact.max()))
    return np.rint((exact - low) * (255 / (high - low))).astype(np.uint8)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    bands=st.sampled_from([1, 3]),
    color=st.sampled_from(["rgb", "minisblack", "miniswhite"]),
    planar=st.sampled_from(["contig", "separate"]),
    order=st.sampled_from("<>"),
    large=st.booleans(),
    tile=st.sampled_from([None, (16, 16)]),
    compression=st.sampled_from([None, "zlib"]),
    orientation=st.integers(1, 8),
)
def test_every_kind_is_read_as_by_the_reference(
    tmp_path_factory, kind, bands, color, planar, order, large, tile, compression, orientation
):
    """Whole, by its bytes, and in parts.

    Pillow alone, as before, takes planes of 16 bits for bytes, cuts 16 bits to 8, swaps bytes of compressed big-endian
    numbers, inverts no deep grey, takes signed bytes for unsigned ones, and in parts nothing was turned.
    """
    values = numbers(kind, (5, 7, bands))
    if bands == 3:
        photometric = "rgb" if color == "miniswhite" else color
    else:
        photometric = "minisblack" if color == "rgb" else color
    stored = values[..., 0] if bands == 1 else np.moveaxis(values, -1, 0) if planar == "separate" else values
    options = {"planarconfig": planar} if bands == 3 else {}
    written = io.BytesIO()
    tags = [] if orientation == 1 or (large and order == ">") else [(274, "H", 1, orientation, True)]
    tifffile.imwrite(
        written,
        stored,
        photometric=photometric,
        byteorder=order,
        bigtiff=large,
        tile=tile,
        compression=compression,
        extratags=tags,
        metadata=None,
        **options,
    )
    expected = 255 - shades(values) if photometric == "miniswhite" else shades(values)
    expected = UPRIGHT[orientation if tags else 1](np.broadcast_to(expected, (5, 7, 3)))
    path = tmp_path_factory.getbasetemp() / "kind.tif"
    path.write_bytes(written.getvalue())
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(as_array(written.getvalue()), expected)
    raster = open_raster(path)
    height, width = expected.shape[:2]
    assert (raster.height, raster.width) == (height, width)
    np.testing.assert_array_equal(raster.read(1, height - 1, 2, width), expected[1:-1, 2:])
    raster.close()


def test_planes_of_16_bits(tmp_path):
    """The left half is red; Pillow shows stripes."""
    planes = np.zeros((3, 2, 6), np.uint16)
    planes[0, :, :3] = 65535
    tifffile.imwrite(tmp_path / "r.tif", planes, photometric="rgb", planarconfig="separate")
    assert read_image(tmp_path / "r.tif").tolist() == [[[255, 0, 0]] * 3 + [[0, 0, 0]] * 3] * 2


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("bands", [2, 4])
def test_alpha(tmp_path, kind, planar, extra, bands):
    values = numbers(kind, (6, 5, bands))
    if extra == "assocalpha":
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
    path, color = tmp_path / "a.tif", "rgb" if bands == 4 else "minisblack"
    tifffile.imwrite(path, stored, photometric=color, planarconfig=planar, extrasamples=[extra])
    shares = values / np.iinfo(kind).max
    colors, alpha = shares[..., :-1], shares[..., -1:]
    on_white = {"unassalpha": colors * alpha + 1 - alpha, "assocalpha": colors + 1 - alpha, "unspecified": colors}
    expected = np.broadcast_to(255 * on_white[extra], (6, 5, 3))
    whole = read_image(path)
    assert np.abs(whole - expected).max() < 1.5, "alpha, colours and their sum are rounded"
    raster = open_raster(path)
    np.testing.assert_array_equal(raster.read(1, 5, 2, 4), whole[1:5, 2:4])


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
@pytest.mark.parametrize("color", ["MINISBLACK", "MINISWHITE", "RGB"])
@pytest.mark.parametrize("compress", ["none", "lzw"])
def test_few_bits(tmp_path, bits, color, compress):
    bands, kind = 3 if color == "RGB" else 1, np.uint8 if bits < 8 else np.uint16
    values = np.random.default_rng(0).integers(0, 2**bits, (bands, 6, 9)).astype(kind)
    path = save_raster(tmp_path / "a.tif", values, nbits=bits, photometric=color, compress=compress)
    expected = np.rint(values * 255.0 / (2**bits - 1)).astype(int)
    expected = np.broadcast_to(np.moveaxis(255 - expected if color == "MINISWHITE" else expected, 0, -1), (6, 9, 3))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(open_raster(path).read(0, 6, 0, 9), expected)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_palettes(tmp_path, kind):
    count = np.iinfo(kind).max + 1
    colors = np.random.default_rng(0).integers(0, 65536, (3, count), np.uint16)
    values = numbers(kind, (4, 5))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="palette", colormap=colors)
    expected = np.moveaxis(colors[:, values], 0, -1) / 257
    assert np.abs(read_image(tmp_path / "a.tif") - expected).max() <= 1


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_ink(tmp_path, kind):
    values = numbers(kind, (6, 5, 4))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="separated")
    ink = values / np.iinfo(kind).max
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(read_image(tmp_path / "a.tif") - expected).max() <= 2


def test_what_nobody_reads_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbers("uint16", (6, 5, 3)), photometric="cielab")
    with pytest.raises(UserError, match=r"a.tif is a TIFF of a kind \(CIELAB, 3 x 16-bit integers\) that is not read"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(UserError, match="that is not read; convert it to 8-bit RGB"):
        open_raster(tmp_path / "a.tif")


def test_complex_numbers_are_refused(tmp_path):
    path = save_raster(tmp_path / "a.tif", np.ones((1, 4, 5), np.complex64))
    for read in (read_image, open_raster):
        with pytest.raises(UserError, match="a.tif holds complex64 values; convert them to real numbers"):
            read(path)


@pytest.mark.parametrize("below", [False, True])
def test_a_thumbnail_that_comes_first_is_passed_over(tmp_path, below, without_rasterio_too):
    """In a row of pages, or with the picture hanging below it."""
    picture, small = numbers("uint8", (40, 60, 3)), np.zeros((4, 6, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(small, photometric="rgb", subfiletype=1, metadata=None, subifds=1 if below else 0)
        file.write(picture, photometric="rgb", metadata=None)
    if below and without_rasterio_too:
        with pytest.raises(UserError, match="rasterio reads; install that"):
            read_image(tmp_path / "a.tif")
        return
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), picture)


@pytest.fixture(params=[False, True], ids=["rasterio", "no rasterio"])
def without_rasterio_too(request, monkeypatch):
    if request.param:
        monkeypatch.setitem(sys.modules, "rasterio", None)
    return request.param


def test_raw_pictures_of_cameras_are_refused(tmp_path):
    (tmp_path / "a.CR2").write_bytes(b"II*\0 whatever")
    with pytest.raises(UserError, match=r"a.CR2 is a camera's raw picture; develop it to a TIFF, PNG or JPEG"):
        read_image(tmp_path / "a.CR2")
    tifffile.imwrite(tmp_path / "a.tif", numbers("uint8", (4, 5)), extratags=[(50706, "B", 4, b"\1\4\0\0", True)])
    with pytest.raises(UserError, match=r"a.tif is a camera's raw picture"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (np.zeros((3, 4, 5), np.uint16), {"photometric": "rgb", "planarconfig": "separate"}),
        (np.zeros((4, 5, 3), np.float32), {"photometric": "rgb"}),
        (np.zeros((6, 4, 5), np.uint8), {"photometric": "minisblack", "planarconfig": "separate"}),
        (np.zeros((4, 5), np.uint16), {"photometric": "miniswhite"}),
        (np.zeros((4, 5, 3), np.uint8), {"photometric": "rgb", "byteorder": ">", "bigtiff": True}),
    ],
)
def test_what_pillow_reads_wrongly_is_refused_without_rasterio(tmp_path, monkeypatch, values, options):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    with pytest.raises(UserError, match=r"a.tif is a TIFF of a kind \(.*\) that rasterio reads; install that with"):
        read_image(tmp_path / "a.tif")


def test_no_data_are_no_part_of_the_range(tmp_path, without_rasterio_too):
    values = np.array([[[-9999, 10, 110, 1030], [-9999, -9999, 520, 1030]]], np.float32)
    path = save_raster(tmp_path / "a.tif", values, nodata=-9999)
    rgb, valid, _ = read_pixels(path)
    assert rgb[..., 0].tolist() == [[0, 0, 25, 255], [0, 0, 128, 255]]
    assert valid.tolist() == [[False, True, True, True], [False, False, True, True]]


def test_no_data_of_bytes_without_rasterio(tmp_path, monkeypatch):
    path = save_raster(tmp_path / "a.tif", np.array([[[0, 7, 9]], [[0, 0, 1]], [[0, 3, 5]]], np.uint8), nodata=0)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    rgb, valid, _ = read_pixels(path)
    assert rgb.tolist() == [[[0, 0, 0], [7, 0, 3], [9, 1, 5]]]
    assert valid.tolist() == [[False, True, True]]


def test_a_picture_with_nothing_but_no_data(tmp_path):
    path = save_raster(tmp_path / "a.tif", np.full((1, 2, 3), np.nan, np.float32), **PLACE)
    rgb, valid, _ = read_pixels(path)
    assert not rgb.any()
    assert not valid.any()
    assert not read_pixels(path, View(stretch=Stretch("percentiles", 2, 98))).rgb.any()


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_place_on_earth_is_not_turned(tmp_path, orientation):
    """Its transform says where the stored rows and columns lie."""
    values = numbers("uint8", (3, 4, 5))
    path = save_raster(tmp_path / "a.tif", values, **PLACE)
    content = bytearray(path.read_bytes())
    turned = _with_orientation(content, orientation)
    path.write_bytes(turned)
    assert Image.open(path).tag_v2[274] == orientation
    np.testing.assert_array_equal(read_image(path), np.moveaxis(values, 0, -1))
    raster = open_raster(path)
    np.testing.assert_array_equal(raster.read(0, 4, 0, 5), np.moveaxis(values, 0, -1))


def _with_orientation(content, orientation):
    """The same file with a first page, at its end, that has one tag more."""
    count = int.from_bytes(content[(start := int.from_bytes(content[4:8], "little")) : start + 2], "little")
    entries = [bytes(content[start + 2 + 12 * place : start + 14 + 12 * place]) for place in range(count)]
    added = ((274, 2), (3, 2), (1, 4), (orientation, 4))  # tag, kind, count and value, and their bytes
    entries.append(b"".join(number.to_bytes(size, "little") for number, size in added))
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
    content += bytes(len(content) % 2)
    content[4:8] = len(content).to_bytes(4, "little")
    return bytes(content) + (count + 1).to_bytes(2, "little") + b"".join(entries) + bytes(4)


def test_damage_behind_the_header_is_told(tmp_path):
    values = np.random.default_rng(0).random((3, 300, 300)).astype(np.float32)
    path = save_raster(tmp_path / "a.tif", values, compress="deflate", tiled=True, blockxsize=128, blockysize=128)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.tif is damaged"):
        read_image(path)


def test_a_file_that_gdal_does_not_open(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers("float32", (40, 50, 3)), photometric="rgb", bigtiff=True, byteorder=">")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="a.tif cannot be read"):
        read_image(path)


def test_damage_in_a_band_that_is_not_shown(tmp_path):
    """It says where there are data, too."""
    values = np.random.default_rng(0).integers(0, 9, (2, 300, 300), np.uint8)
    path = save_raster(tmp_path / "a.tif", values, compress="deflate", interleave="band", nodata=0)
    content = bytearray(path.read_bytes())
    content[-5000:] = bytes(5000)
    path.write_bytes(content)
    raster = open_raster(path, View((1,)))
    assert raster.read(0, 300, 0, 300).shape == (300, 300, 3)
    with pytest.raises(UserError, match="a.tif is damaged"):
        raster.valid(0, 300, 0, 300)


def test_nothing_but_transparency(tmp_path):
    path = save_raster(tmp_path / "a.tif", np.ones((1, 4, 5), np.uint8), **PLACE)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp.alpha]
    with pytest.raises(UserError, match="a.tif holds nothing but transparency"):
        read_image(path)


def test_a_picture_behind_a_thumbnail_that_is_lost(tmp_path, monkeypatch):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((4, 6, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None)
        file.write(numbers("uint8", (40, 60, 3)), photometric="rgb", metadata=None)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "seek", lambda *_: 1 / 0)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UserError, match="a.tif is truncated or damaged"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["zip:a.tif", "GTIFF_DIR:2:a.tif", "a.zip!a.tif"])
def test_names_that_mean_something_to_gdal(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    values = numbers("float32", (3, 4, 5))
    save_raster(tmp_path / "b.tif", values).rename(name)
    np.testing.assert_array_equal(read_image(name), np.moveaxis(shades(values), 0, -1))


@pytest.mark.parametrize("compress", ["lzw", "packbits", "zstd", "lerc", "jpeg"])
def test_compressions_whole_and_in_parts(tmp_path, compress):
    values = np.rint(127.5 + 127 * np.sin(np.mgrid[:3, :40, :50].sum(0) / 9)).astype(np.uint8)
    options = {"photometric": "YCBCR"} if compress == "jpeg" else {}
    path = save_raster(tmp_path / "a.tif", values, compress=compress, **options)
    whole = read_image(path)
    assert np.abs(whole - np.moveaxis(values, 0, -1).astype(int)).max() <= (9 if compress == "jpeg" else 0)
    np.testing.assert_array_equal(open_raster(path).read(3, 40, 5, 50), whole[3:, 5:])
