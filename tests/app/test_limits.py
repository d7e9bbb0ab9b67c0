"""Too much is refused in a sentence, from headers alone, which says nothing of where files lie."""

import struct
import zlib

import pytest
from PIL import Image

from dinov3seg_jax.app.limits import LONGEST_TEXT, Limits
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists import parse_names


def png_that_declares(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_that_declares(60_000, 60_000), "picture.png has .*60000 x 60000 pixels"),
        (png_that_declares(12_000, 12_000), "picture.png has 12,000 x 12,000 pixels, more than 100,000,000; make it"),
        (b"no picture at all, whatever its name says", "picture.png is no picture that can be read"),
        (b"", "picture.png is empty"),
        (png_that_declares(10, 10)[:20], "picture.png is"),
    ],
)
def test_an_upload_is_refused_by_its_header(tmp_path, content, message):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Limits().check_upload(path, "picture.png")
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_too_long_or_gone(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    Limits(pixels=600).check_upload(path, "a.png")
    with pytest.raises(UserError, match=r"^a\.png has 30 x 20 pixels, more than 599; make it smaller"):
        Limits(pixels=599).check_upload(path, "a.png")
    with pytest.raises(UserError, match=r"^a\.png has \d+ bytes, more than 10; make it smaller"):
        Limits(upload=10).check_upload(path, "a.png")
    path.unlink()
    with pytest.raises(UserError, match=r"^a\.png is here no more; drop it again"):
        Limits().check_upload(path, "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no class name"),
        (" \n ", "there is no class name"),
        (None, "there is no class name"),
        ("@/etc/passwd", "names a file, and none is read here"),
        ("  @names.txt", "names a file"),
        ("x" * (LONGEST_TEXT + 1), "has 50,001 letters, more than 50,000"),
    ],
)
def test_a_list_that_is_refused_before_it_is_read(text, message):
    with pytest.raises(UserError, match=message):
        Limits().check_text(text)


@pytest.mark.parametrize("text", ["/etc/hostname", "names.txt", "dog", " dog "])
def test_one_name_is_no_path(text):
    assert parse_names(Limits().check_text(text).replace(".txt", " txt"))[0] == text.strip().replace(".txt", " txt")


def test_a_list_with_too_many_names():
    Limits(names=2).check_count(2)
    with pytest.raises(UserError, match="the list has 3 names, more than 2; ask in several parts"):
        Limits(names=2).check_count(3)
