"""What `--image` names, and what is passed over."""

import errno
import io
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.data.images import read_image
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import listing
from dinov3seg_jax.pictures.listing import describe_passed_over, find_pictures, standard_input


def found(*paths):
    return list(find_pictures([Path(path) for path in paths]).roots)


def save(folder):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "picture.png")


def test_list_of_a_file(tmp_path):
    path = tmp_path / "any.thing"
    path.touch()
    assert found(path) == [path]


def test_list_of_a_folder(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a.tiff", "c.txt", ".hidden/x.png", "._a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert found(tmp_path) == [tmp_path / name for name in ("a.tiff", "b/10.png", "b/2.JPG")]


def test_list_of_links(tmp_path):
    """Those that lead nowhere or in a circle are listed, and fail when they are read; so are no pipes."""
    (tmp_path / "folder").mkdir()
    save(tmp_path / "folder")
    for name, target in (("a.png", "absent"), ("b.png", "b.png"), ("c", "folder"), ("d.png", "folder/picture.png")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.png")
    below = ["a.png", "b.png", "d.png", "folder/picture.png"]
    assert found(tmp_path) == [tmp_path / name for name in below]
    for name, message in (("a.png", "a.png does not exist"), ("b.png", "b.png cannot be read")):
        with pytest.raises(UserError, match=message):
            read_image(tmp_path / name)


@pytest.mark.parametrize("closed", ["", "b/c"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, closed):
    """But not a hidden one."""
    save(tmp_path)
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
        found(tmp_path)


def test_list_of_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        found(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read"):
        found(tmp_path / ("a" * 300))


def test_list_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        found(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        found(tmp_path / "absent")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_what_is_passed_over_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(listing.importlib.util, "find_spec", lambda name: None)
    touch(tmp_path, "a.png", "b.HEIC", "c.heic", "d.dng", "e.CR2", "sub/f.jxl", "g", ".hidden", ".git/h.txt")
    (tmp_path / "link").symlink_to("sub")
    seen = find_pictures([tmp_path])
    assert list(seen.roots) == [tmp_path / "a.png"]
    assert seen.passed_over == {
        ".heic": 2,
        ".dng": 1,
        ".cr2": 1,
        ".jxl": 1,
        "without an ending": 1,
        "link to a folder": 1,
    }
    line = describe_passed_over(seen.passed_over)
    assert line.startswith("7 files passed over: 2 .heic, ")
    assert line.endswith("; to read .heic, install the extra 'heif'")


def test_nothing_is_said_of_nothing(tmp_path):
    touch(tmp_path, "a.png")
    assert describe_passed_over(find_pictures([tmp_path]).passed_over) == ""
    assert (
        describe_passed_over(Counter({"link to a folder": 2, ".txt": 1}))
        == "3 files passed over: 2 links to folders, 1 .txt"
    )


def test_a_folder_of_other_files_says_what_they_are(tmp_path):
    touch(tmp_path, "a.dng", "b.dng")
    with pytest.raises(UserError, match="holds no picture; 2 files passed over: 2 .dng; use files that end in"):
        found(tmp_path)


@pytest.mark.parametrize("installed", [True, False])
def test_heic_is_a_picture_where_it_can_be_read(tmp_path, monkeypatch, installed):
    monkeypatch.setattr(listing.importlib.util, "find_spec", lambda name: object() if installed else None)
    touch(tmp_path, "a.png", "b.HEIC", "c.heif")
    assert len(found(tmp_path)) == (3 if installed else 1)


def test_results_of_this_program_are_no_pictures(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    Segmentation(np.zeros((4, 6), int), np.ones((4, 6)), ("grass",), picture).save(tmp_path, "picture")
    save(tmp_path)
    touch(tmp_path, "other_overlay.png", "mine_labels.png")
    (tmp_path / "mine.json").write_text("{}")
    seen = find_pictures([tmp_path])
    assert [path.name for path in seen.roots] == ["mine_labels.png", "other_overlay.png", "picture.png"]
    assert seen.passed_over == {"result of this program": 2, ".json": 2}


def test_several_paths_and_patterns(tmp_path):
    touch(tmp_path, "a/1.png", "a/2.jpg", "a/b/3.png", "a/4.txt", "c/1.png", "[x].png")
    assert found(tmp_path / "c", tmp_path / "a/2.jpg", tmp_path / "c/1.png") == [
        tmp_path / "c/1.png",
        tmp_path / "a/2.jpg",
    ]
    assert found(tmp_path / "a/*") == [tmp_path / "a" / name for name in ("1.png", "2.jpg", "b/3.png")]
    assert found(tmp_path / "**/*.png") == [tmp_path / name for name in ("[x].png", "a/1.png", "a/b/3.png", "c/1.png")]
    assert found(tmp_path / "[x].png") == [tmp_path / "[x].png"]
    roots = find_pictures([tmp_path / "*/1.png"]).roots
    assert set(roots.values()) == {tmp_path}


def test_one_picture_is_single_and_all_else_are_many(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    assert find_pictures([tmp_path / "a/1.png"]).single
    for named in ([tmp_path / "a"], [tmp_path / "a/*.png"], [tmp_path / "a/1.png", tmp_path / "b/1.png"]):
        assert not find_pictures(named).single


@pytest.mark.parametrize(("pattern", "message"), [("*.webp", "no file matches"), ("*.txt", "no picture matches")])
def test_patterns_that_match_nothing(tmp_path, pattern, message):
    touch(tmp_path, "a.png", "b.txt")
    with pytest.raises(UserError, match=message):
        found(tmp_path / pattern)


@pytest.mark.parametrize(("kind", "name"), [("PNG", "stdin"), ("TIFF", "stdin.tif")])
def test_standard_input(tmp_path, monkeypatch, kind, name):
    content = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(content, kind)
    content.seek(0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    with standard_input([tmp_path, Path("-")]) as named:
        assert named[0] == tmp_path
        assert named[1].name == name
        assert read_image(named[1])[0, 0].tolist() == [255, 0, 0]
    assert not named[1].exists()


def test_nothing_from_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(UserError, match="nothing comes from standard input"), standard_input([Path("-")]):
        pass
