"""Pictures in tars and tables: which are found, under which names."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov3seg_jax.cluster.shards import is_shard, members
from dinov3seg_jax.errors import UserError


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_table(file, /, **columns):
    pq.write_table(pa.table(columns), file)
    return file


def test_a_sample_of_a_tar_is_one_picture(tmp_path):
    files = {
        "a/0.cls": b"1",
        "a/0.jpg": b"first",
        "a/0.png": b"a mask, perhaps",
        "a/1.seg.png": b"a mask",
        "a/1.JPEG": b"second",
        "a/.hidden.jpg": b"no",
        "b/0.jpg": b"third",
    }
    found = list(members(write_tar(tmp_path / "x.tar", files)))
    assert found == [("a/0.jpg", b"first"), ("a/1.JPEG", b"second"), ("b/0.jpg", b"third")]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"image": [b"x", b"y"], "path": ["p", "q"]}, [("p", b"x"), ("q", b"y")]),
        ({"mask": [b"m"], "image": [b"x"], "__key__": ["k"]}, [("k", b"x")]),
        ({"jpg": [b"x", None], "n": [1, 2]}, [("00000000", b"x"), ("00000001", b"")]),
        ({"image": [{"bytes": b"x", "path": "p.png"}], "label": [1]}, [("p.png", b"x")]),
        ({"image": [{"bytes": b"x", "path": None}]}, [("00000000", b"x")]),
    ],
)
def test_pictures_of_a_table(tmp_path, columns, found):
    assert list(members(write_table(tmp_path / "x.parquet", **columns))) == found


def test_what_holds_no_pictures(tmp_path):
    with pytest.raises(UserError, match="no column of bytes, which pictures are; its columns are a, b"):
        list(members(write_table(tmp_path / "x.parquet", a=[1], b=["x"])))
    for name in ("y.parquet", "y.tar"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
        with pytest.raises(UserError, match=f"{name} is damaged or no"):
            list(members(tmp_path / name))


def test_a_tar_that_was_uploaded_by_half(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"0.jpg": b"a" * 5000, "1.jpg": b"b" * 5000})
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(UserError, match="x.tar is damaged"):
        list(members(path))


def test_they_are_known_by_their_endings(tmp_path):
    assert [is_shard(tmp_path / name) for name in ("a.TAR", "a.parquet", "a.tar.gz", "a.png")] == [True] * 2 + [
        False
    ] * 2
