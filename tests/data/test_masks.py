"""However a mask is encoded, its values are read as they were meant, or it is refused in one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from dinov3seg_jax.data.masks import MaskReader, stored_mask
from dinov3seg_jax.data.orientation import turn
from dinov3seg_jax.errors import UserError

VALUES = np.array([[0, 1, 2], [3, 200, 255]], np.uint8)
COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd")
PALETTE = [level for index in range(256) for level in (255 - index, 7 * index % 256, 40)]


def encoded(mask: Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    mask.save(file, kind, **{name: value for name, value in options.items() if value is not None})
    return io.BytesIO(file.getvalue())


def exif(orientation: int) -> Image.Exif:
    noted = Image.Exif()
    noted[0x0112] = orientation
    return noted


def refused(file: io.BytesIO, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        stored_mask(file, "a.png")
    message = str(caught.value)
    assert message.startswith("mask a.png ")
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@st.composite
def masks(draw):
    """Plain values, how wide they are, their note of orientation, and a file that holds them."""
    kind = draw(
        st.sampled_from(["1 bit", "grey", "palette", "small palette", "16 bits", "16 bits, big end", "32 bits"])
    )
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    top = {"1 bit": 1, "small palette": 3, "grey": 255, "palette": 255}.get(kind, 65535)
    seed = draw(st.integers(0, 2**32 - 1))
    plain = np.random.default_rng(seed).integers(0, top + 1, (height, width))
    container = "TIFF" if kind in ("16 bits, big end", "32 bits") else draw(st.sampled_from(["PNG", "TIFF"]))
    orientation = draw(st.sampled_from([None, *range(1, 9)]))
    if kind == "1 bit":
        mask = Image.fromarray((plain * 255).astype(np.uint8)).convert("1")
    elif kind == "16 bits":
        mask = Image.fromarray(plain.astype(np.uint16))
    elif kind == "16 bits, big end":
        mask = Image.frombytes("I;16B", (width, height), plain.astype(">u2").tobytes())
    elif kind == "32 bits":
        mask = Image.fromarray(plain.astype(np.int32))
    else:
        mask = Image.fromarray(plain.astype(np.uint8))
        if "palette" in kind:
            mask.putpalette(PALETTE[: 3 * (top + 1)])
    compression = draw(st.sampled_from(COMPRESSIONS)) if container == "TIFF" else None
    if compression == "packbits" and kind == "1 bit":
        compression = "group4"
    noted = None if orientation is None else exif(orientation)
    file = encoded(mask, container, compression=compression, exif=noted)
    return plain, 16 if top > 255 else 8, orientation or 1, file


@settings(max_examples=150, deadline=None)
@given(masks())
def test_values_come_back_from_every_encoding(drawn):
    plain, bits, orientation, file = drawn
    mask = stored_mask(file, "a")
    np.testing.assert_array_equal(mask.values, turn(plain, orientation))
    assert (mask.bits, mask.own) == (bits, orientation)
    assert mask.shape == mask.values.shape


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=9, unique=True), st.integers(0, 2**32 - 1), st.booleans())
def test_values_become_classes_by_their_list_alone(ids, seed, wide):
    """Against the plainest way."""
    ids = ids if wide else sorted({number % 256 for number in ids})
    class_of_id = {number: index for index, number in enumerate(ids)}
    plain = np.random.default_rng(seed).choice([*ids, 0, 255], (4, 5))
    expected = [[class_of_id.get(int(value), -1) for value in row] for row in plain]
    reader = MaskReader(class_of_id, (0, 255))
    mask = reader.open(encoded(Image.fromarray(plain.astype(np.uint16 if wide else np.uint8))), "a")
    np.testing.assert_array_equal(reader.label(mask), expected)
    assert all(reader.is_declared(value) for value in (*ids, 0, 255))
    strange = next(value for value in range(1, 2**16) if value not in class_of_id and value != 255)
    assert not reader.is_declared(strange)
    assert not reader.is_declared(-1)
    assert not reader.is_declared(2**16)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_grey_that_was_saved_as_colour_says_how_to_mend_it(mode):
    refused(encoded(Image.fromarray(VALUES).convert(mode)), f"mode {mode}", "all of it is grey", "one channel")


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "TIFF"), ("CMYK", "TIFF")])
def test_colours_are_no_ids(mode, kind):
    mask = Image.fromarray(np.stack([VALUES, VALUES[::-1], VALUES], axis=-1)).convert(mode)
    refused(encoded(mask, kind), f"mode {mode}", "colours are no class ids", "one channel of 8 or 16 bits")


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_transparency_beside_values_is_refused(mode):
    mask = Image.fromarray(VALUES).convert(mode)
    refused(encoded(mask, "TIFF" if mode == "PA" else "PNG"), f"mode {mode}", "transparency", "one channel")


def test_fractions_are_refused():
    refused(encoded(Image.fromarray(VALUES.astype(np.float32)), "TIFF"), "mode F", "whole numbers")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF"])
def test_what_changes_values_is_refused_whatever_its_ending(kind):
    compression = "jpeg" if kind == "TIFF" else None
    large = Image.fromarray(VALUES.repeat(16, axis=0).repeat(16, axis=1))
    refused(encoded(large, kind, compression=compression), "JPEG" if kind == "TIFF" else kind, "changes values", "PNG")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_that_counts_from_white_is_refused_as_pillow_turns_it_round(compression):
    file = encoded(Image.fromarray(VALUES), "TIFF", compression=compression, tiffinfo={262: 0})
    assert Image.open(file).tag_v2[262] == 0
    refused(file, "in which 0 is white")


def test_pages_of_one_class_each_are_refused():
    pages = [Image.fromarray(VALUES * number) for number in (0, 1)]
    refused(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]), "several pages", "single one")
    refused(encoded(pages[0], "PNG", save_all=True, append_images=pages[1:]), "several pages")


@pytest.mark.parametrize("order", [1, -1])
def test_a_smaller_copy_in_a_tiff_is_no_page_of_its_own(order):
    """Files for maps hold some, to be shown from afar; cameras put one first."""
    file = io.BytesIO()
    with AppendingTiffWriter(file, True) as writer:
        for pixels, kind in ((VALUES, 0), (VALUES[:1], 1))[::order]:
            Image.fromarray(pixels).save(writer, "TIFF", tiffinfo={254: kind})
            writer.newFrame()
    file = io.BytesIO(file.getvalue())
    assert Image.open(file).n_frames == 2
    np.testing.assert_array_equal(stored_mask(file, "a").values, VALUES)


@pytest.mark.parametrize("bits", [2, 4])
def test_fewer_than_eight_bits_are_refused_as_pillow_scales_them(bits):
    refused(_png(bits), "fewer than 8 bits", "8 or 16 bits")


def _png(bits: int) -> io.BytesIO:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00\x1b")) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


def test_a_damaged_mask_is_named():
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))).getvalue()
    refused(io.BytesIO(content[: len(content) // 2]), "damaged", "copy it again")
    refused(io.BytesIO(b"no picture"), "is no picture")
