"""Paths on this machine and in buckets behave alike, and what is wrong with a bucket is said at once."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinov3seg_jax import buckets, places
from dinov3seg_jax.errors import UserError, note
from dinov3seg_jax.files import appearing, expanded, write_whole
from dinov3seg_jax.folders import copy_tree, files_below
from dinov3seg_jax.places import check_writable, is_remote, local_copy, place


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """The folder of copies; every note is said again."""
    monkeypatch.setenv("DINOV3SEG_CACHE", str(tmp_path / "cache"))
    note.cache_clear()
    return tmp_path / "cache" / "copies"


def test_a_local_path_is_pathlibs_and_loads_nothing(tmp_path):
    assert place("a//b/../c.png") == Path("a//b/../c.png")
    assert type(place("a")) is type(Path("a"))
    assert place("~") == Path.home()
    assert local_copy(tmp_path) is tmp_path
    assert not is_remote(tmp_path)
    assert not is_remote("gs://bucket")
    check_writable(tmp_path / "not there")
    assert not (tmp_path / "not there").exists()
    code = "import sys, dinov3seg_jax.files as f; f.expanded('a'); print({'fsspec', 'upath'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_path_in_a_bucket_has_pathlibs_methods(bucket):
    root = expanded(f"{bucket}/folder#1")  # which is no version of a file, as gcsfs would have it
    picture = root / "a#b ü.png"
    write_whole(picture, b"one")
    assert is_remote(root)
    assert str(picture) == f"{bucket}/folder#1/a#b ü.png"
    assert expanded(picture) is picture
    assert picture.read_bytes() == b"one"
    assert picture.stat().st_size == 3
    assert (picture.name, picture.suffix, picture.parent) == ("a#b ü.png", ".png", root)
    assert picture.relative_to(root).as_posix() == "a#b ü.png"
    assert picture.is_file()
    assert not picture.is_dir()
    assert root.is_dir()
    assert not root.is_file()
    assert not (root / "no").exists()
    assert not (root / "no").is_file()
    (root / "deep").mkdir(parents=True, exist_ok=True)
    (root / "deep" / "b.txt").write_text("x\r\ny\n", encoding="utf-8")
    assert (root / "deep" / "b.txt").read_text() == "x\ny\n"
    assert sorted(path.name for path in root.iterdir()) == ["a#b ü.png", "deep"]
    assert [path.name for path in root.glob("*.png")] == ["a#b ü.png"]
    assert list(files_below(root).values()) == [picture, root / "deep" / "b.txt"]
    assert list(files_below(root)) == ["a#b ü.png", "deep/b.txt"]
    assert list(files_below(place(bucket))) == ["folder#1/a#b ü.png", "folder#1/deep/b.txt"]
    assert str(expanded(f"{bucket}/folder#1/")) == str(root)
    with (root / "deep" / "b.txt").open() as lines:
        assert [line.strip() for line in lines] == ["x", "y"]
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        (root / "no").read_bytes()
    assert caught.value.filename == f"{bucket}/folder#1/no"
    picture.unlink()
    picture.unlink(missing_ok=True)
    assert not picture.exists()
    assert pickle.loads(pickle.dumps(root)) == root


def test_a_file_appears_whole_or_not_at_all(bucket):
    path = place(f"{bucket}/whole.npz")

    def stop_halfway():
        with appearing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop_halfway()
    assert not path.exists()
    with appearing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.name == "whole.npz"
    assert path.read_bytes() == b"whole"
    assert not temporary.exists()


@pytest.mark.slow
def test_what_another_process_wrote_is_seen_at_once(bucket):
    root = place(f"{bucket}/folder")
    (root / "a").write_bytes(b"1")
    assert [path.name for path in root.iterdir()] == ["a"]
    code = "import sys; from dinov3seg_jax.places import place; (place(sys.argv[1]) / 'b').write_bytes(b'2')"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"]
    assert (root / "b").exists()


def _read_in_child(path, answers):
    answers.put(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_paths_work_in_other_processes(s3, method):
    path = place(f"{s3}/a")
    path.write_bytes(b"1")
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(path, answers))
    child.start()
    assert answers.get(timeout=60) == b"1"
    child.join()


def test_a_copy_is_named_kept_and_refreshed(bucket, copies, capsys):
    folder = place(f"{bucket}/folder")
    (folder / "a.txt").write_bytes(b"1")
    (folder / "deep" / "b.txt").write_bytes(b"2")
    copy = local_copy(folder)
    assert copy.name == "folder"
    assert copy.is_relative_to(copies)
    assert f"note: {folder} is read from a copy on this machine, {copy}" in capsys.readouterr().err
    (copy / "a.txt").write_bytes(b"m")
    assert local_copy(folder) == copy
    assert (copy / "a.txt").read_bytes() == b"m"
    (folder / "a.txt").write_bytes(b"3")
    (folder / "deep" / "b.txt").unlink()
    local_copy(folder)
    assert (copy / "a.txt").read_bytes() == b"3"
    assert not (copy / "deep" / "b.txt").exists()
    assert local_copy(folder / "a.txt").read_bytes() == b"3"
    with pytest.raises(FileNotFoundError):
        local_copy(folder / "none")


@pytest.mark.slow
def test_a_copy_that_was_cut_off_is_none(s3, s3_faults, copies, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    file = place(f"{s3}/a.bin")
    file.write_bytes(bytes(100_000))
    s3_faults.cut(keep=0.5, times=100, name="a.bin")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 2)
    with pytest.raises(OSError, match="a.bin"):
        local_copy(file)
    s3_faults.clear()
    assert not list(copies.rglob("*a.bin*"))
    assert local_copy(file).read_bytes() == bytes(100_000)


@pytest.mark.slow
def test_without_a_cache_copies_last_as_long_as_the_process(s3):
    file = place(f"{s3}/a.bin")
    file.write_bytes(b"1")
    code = "import sys; from dinov3seg_jax.places import *; print(local_copy(place(sys.argv[1])))"
    copy = subprocess.check_output([sys.executable, "-c", code, str(file)], text=True).strip()
    assert copy.endswith("/a.bin")
    assert not Path(copy).exists()


def test_a_cache_is_on_this_machine(monkeypatch):
    monkeypatch.setenv("DINOV3SEG_CACHE", "s3://bucket/cache")
    with pytest.raises(UserError, match="DINOV3SEG_CACHE is s3://bucket/cache, but a cache is on this machine; name"):
        places.cache_folder()


def test_a_tree_is_copied_with_its_manifest_last(s3, s3_faults, tmp_path):
    for name in ("a.txt", "manifest.json", "z/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    s3_faults.seen.clear()
    copy_tree(tmp_path, place(f"{s3}/tree"), last="manifest.json")
    written = [path.partition("?")[0].split("/tree/")[1] for method, path in s3_faults.seen if method == "PUT"]
    assert written == ["a.txt", "z/b.txt", "manifest.json"]
    assert (place(f"{s3}/tree") / "z" / "b.txt").read_bytes() == b"z/b.txt"


def test_no_such_bucket(bucket):
    with pytest.raises(UserError, match=f"there is no bucket {bucket}-no; check its name, or make it"):
        place(f"{bucket}-no/folder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://host/a.png", "'http://host/a.png' is an address of a kind that is not read; name a path, or gs://"),
        ("s3://", "s3:// names no bucket; write s3://bucket/folder"),
        (Path("gs://bucket/a"), "gs:/bucket/a lost a slash in pathlib.Path"),
        (3, "a path was expected, not a int"),
        ("~nobody-of-this-name/a", "begins with a home folder that is not there"),
    ],
)
def test_what_is_no_place(text, said):
    with pytest.raises(UserError, match=said):
        place(text)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_a_missing_extra_is_named(scheme, extra, monkeypatch):
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "gcsfs" if extra == "gcs" else "s3fs", None)
    monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(UserError, match=rf"install the extra '{extra}': pip install 'dinov3seg_jax\[{extra}\]'"):
        place(f"{scheme}://bucket-of-nobody/a")


def test_what_needs_a_local_file_says_so(s3):
    with pytest.raises(UserError, match="works with files on this machine only; copy it there first"):
        os.stat(place(f"{s3}/a"))


def test_no_credentials(s3, monkeypatch):
    from fsspec.registry import _registry

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    _registry["s3"].clear_instance_cache()
    with pytest.raises(UserError, match="Unable to locate credentials.*run: aws configure"):
        place(f"{s3}/a")


def test_no_right_to_read(bucket, faults):
    faults.answer(403)
    with pytest.raises(UserError, match=r"may not be read .*; use credentials that may list and read it"):
        place(f"{bucket}/a")


def test_wrong_credentials(gcs, gcs_faults):
    gcs_faults.answer(401)
    with pytest.raises(UserError, match="cannot be read.*gcloud auth application-default login"):
        place(f"{gcs}/a")


def test_no_right_to_write(bucket, faults):
    folder = place(f"{bucket}/a")
    check_writable(folder)
    assert not folder.exists()
    faults.answer(403, writes=True)
    with pytest.raises(UserError, match=f"{folder} cannot be written .*; use credentials that may write and delete"):
        check_writable(folder)


def test_a_service_that_does_not_answer(bucket, faults, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE_SECONDS", 1)
    faults.stop(40)
    start = time.monotonic()
    with pytest.raises(UserError, match="does not answer within 1 seconds; check the network"):
        place(f"{bucket}/a")
    assert time.monotonic() - start < 20


def test_a_bucket_that_fails_is_not_an_empty_one(bucket, faults, monkeypatch):
    path = place(f"{bucket}/a")
    path.write_bytes(b"1")
    faults.answer(403)
    for ask in (path.exists, path.is_file, path.is_dir, path.read_bytes, lambda: list(path.parent.iterdir())):
        with pytest.raises(PermissionError, match="bucket") as caught:
            ask()
        assert str(caught.value.filename).startswith(bucket)


def test_a_record_that_cannot_be_read_is_none(s3, copies):
    file = place(f"{s3}/a.bin")
    file.write_bytes(b"1")
    record = local_copy(file).parent / "versions.json"
    assert json.loads(record.read_text()).keys() == {""}
    record.write_text("{")
    assert local_copy(file).read_bytes() == b"1"
    assert places._read(record).keys() == {""}
