"""Pictures and results in buckets: the same bytes as on this machine, done once, refused early where they cannot be."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.cli import request
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.folders import copy_tree, files_below
from dinov3seg_jax.pictures.listing import find_pictures, named_files
from dinov3seg_jax.pictures.places import output_places, refuse_place, titles
from dinov3seg_jax.places import place
from dinov3seg_jax.store.run import write_config

RNG = np.random.default_rng(0)
NAMES = ("a.png", "deep/b.png", "deep/c.png", ".hidden/d.png", "deep/notes.txt")


@pytest.fixture
def folder(tmp_path, monkeypatch, model):
    """Three pictures and what is passed over, with "run" beside them; `load` returns a model with random weights."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "run", model.config)
    monkeypatch.setattr(request, "load", lambda *_, zero_shot: model)
    for name in NAMES:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(RNG.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
        else:
            path.write_text("no picture")
    return tmp_path / "pictures"


def words(pictures, out, *more, classes="red circle, grass, sky"):
    return ["--image", str(pictures), "--classes", classes, "--checkpoint", "run", "--out", str(out), *more]


def results(out):
    named = {name: path.read_bytes() for name, path in files_below(out).items()}
    return {name: content for name, content in sorted(named.items()) if name != ".predictions.json"}


@pytest.mark.parametrize("bucket", ["s3", pytest.param("gcs", marks=pytest.mark.slow)], indirect=True)
def test_results_are_those_of_this_machine(folder, bucket, faults, tmp_path, capsys):
    copy_tree(folder, place(f"{bucket}/pictures"))
    place(f"{bucket}/names.txt").write_text("red circle\ngrass\nsky\n")
    formats = ("--formats", "overlay,labels,json,coco")
    assert main(words(folder, tmp_path / "out", *formats)) == 0
    out = place(f"{bucket}/out")
    assert main(words(f"{bucket}/pictures", out, *formats, classes=f"@{bucket}/names.txt")) == 0
    here = results(tmp_path / "out")
    assert len(here) == 3 * 4 + 2
    assert here == results(out)
    capsys.readouterr()
    faults.seen.clear()
    assert main(words(f"{bucket}/pictures", out, *formats)) == 0
    assert "3 of 3 pictures are done already" in capsys.readouterr().out
    assert not [path for _, path in faults.seen if "_overlay" in path]  # no result is asked for: all are listed


def test_a_changed_picture_is_done_again(folder, s3, capsys):
    root, out = place(f"{s3}/pictures"), place(f"{s3}/out")
    copy_tree(folder, root)
    assert main(words(root, out)) == 0
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(folder / "a.png")
    (root / "a.png").write_bytes((folder / "a.png").read_bytes())
    (out / "deep" / "b.json").unlink()
    capsys.readouterr()
    assert main(words(root, out)) == 0
    assert "1 of 3 pictures are done already" in capsys.readouterr().out
    assert json.loads((out / "a.json").read_bytes())["width"] == 50
    with pytest.raises(UserError, match=r"holds results of other names; choose another --out"):
        main(words(root, out, classes="grass"))


@pytest.mark.parametrize("here", [True, False])
def test_files_of_any_kind(here, request, tmp_path):
    """As a cluster takes them: of a folder, of a pattern, by themselves; none that is hidden."""
    root = tmp_path / "x" if here else place(f"{request.getfixturevalue('s3')}/x")
    for name in ("s.tar", "deep/t.TAR", "deep/a.png", ".hidden/u.tar"):
        if here:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    found = {
        name: sorted(named_files(root / name if name else root)) for name in ("", "*.tar", "d*", "**/*.TAR", "s.tar")
    }
    assert found == {
        "": [(root, root / name) for name in ("deep/a.png", "deep/t.TAR", "s.tar")],
        "*.tar": [(root, root / "s.tar")],
        "d*": [(root, root / name) for name in ("deep/a.png", "deep/t.TAR")],
        "**/*.TAR": [(root, root / "deep/t.TAR")],
        "s.tar": [(root, root / "s.tar")],
    }
    with pytest.raises(UserError, match="/x/t.tar does not exist"):
        list(named_files(root / "t.tar"))


def test_what_is_found_in_a_bucket(folder, bucket):
    root = place(f"{bucket}/pictures")
    copy_tree(folder, root)
    listing = find_pictures([root])
    assert [path.relative_to(root).as_posix() for path in listing.roots] == ["a.png", "deep/b.png", "deep/c.png"]
    assert listing.passed_over == {".txt": 1}
    assert not listing.single
    assert titles(listing.roots) == ["a.png", "deep/b.png", "deep/c.png"]
    out = place(f"{bucket}/out")
    assert output_places(listing.roots, out) == [out / "a", out / "deep" / "b", out / "deep" / "c"]
    pattern = find_pictures([root / "deep" / "[b-c].png"])
    assert list(pattern.roots) == [root / "deep" / "b.png", root / "deep" / "c.png"]
    assert find_pictures([root / "a.png"]).single
    with pytest.raises(UserError, match=r"no.png does not exist"):
        find_pictures([root / "no.png"])
    with pytest.raises(UserError, match="no file matches"):
        find_pictures([root / "*.gif"])
    assert titles({root / "a.png": root, folder / "a.png": folder}) == [str(root / "a.png"), str(folder / "a.png")]


def test_results_never_go_among_the_pictures(folder, s3):
    root = place(f"{s3}/pictures")
    copy_tree(folder, root)
    with pytest.raises(UserError, match="lies in the folder of the pictures"):
        refuse_place([root], root / "out")
    refuse_place([root], place(f"{s3}/out"))
    refuse_place([root], folder)


def test_no_right_to_write_is_found_before_work_starts(folder, s3, s3_faults, monkeypatch):
    monkeypatch.setattr(request, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    s3_faults.answer(403, writes=True)
    with pytest.raises(UserError, match=f"{s3}/out cannot be written"):
        main(words(folder, f"{s3}/out"))
    with pytest.raises(UserError, match="there is no bucket"):
        main(words(folder, f"{s3}-absent/out"))


def test_a_picture_that_is_cut_off_stops_none_of_the_others(folder, s3, s3_faults, monkeypatch, capsys):
    root = place(f"{s3}/pictures")
    copy_tree(folder, root)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    s3_faults.cut(times=1000, name="deep/b.png")
    assert main(words(root, f"{s3}/out")) == 2
    assert f"error: {root}/deep/b.png cannot be read" in capsys.readouterr().err
    assert {"a.json", "deep/c.json"} <= results(place(f"{s3}/out")).keys()


def test_a_video_needs_results_on_this_machine(folder, s3):
    (folder / "a.mp4").write_bytes(b"a video")
    with pytest.raises(UserError, match="a video, are written piece by piece, .*; choose an --out on this machine"):
        main(words(folder / "a.mp4", f"{s3}/out"))
