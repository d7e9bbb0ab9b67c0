"""The command that shows two results side by side."""

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.cli import compare
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation

LABELS = np.zeros((60, 80), np.int32)
LABELS[20:40] = 1


@pytest.fixture
def folder(tmp_path):
    """Two pictures, and two results of each."""
    (tmp_path / "photos").mkdir()
    for stem in ("a", "b"):
        image = np.full((60, 80, 3), 90, np.uint8)
        Image.fromarray(image).save(tmp_path / "photos" / f"{stem}.png")
        for place, names in (("one", ("sky", "sea")), ("two", ("sky", "lake"))):
            Segmentation(LABELS, np.ones((60, 80)), names, image).save(tmp_path / place, stem)
    return tmp_path


def run(folder, *arguments, image="photos"):
    results = [str(folder / "one"), str(folder / "two")]
    return compare.main([*results, "--image", str(folder / image), "--out", str(folder / "out"), *arguments])


def test_a_folder(folder, capsys):
    assert run(folder) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a_compared.png", "b_compared.png"]
    assert capsys.readouterr().out.endswith(f"b.png -> {folder / 'out' / 'b_compared.png'}\n")
    with Image.open(folder / "out" / "a_compared.png") as picture:
        assert picture.width >= 3 * 80


def test_options_of_the_drawing(folder):
    run(folder, "--no_legend", "--contours", "off", "--opacity", "1", image="photos/a.png")
    with Image.open(folder / "out" / "a_compared.png") as picture:
        bare = np.asarray(picture)
    run(folder, image="photos/a.png")
    with Image.open(folder / "out" / "a_compared.png") as picture:
        assert picture.width > bare.shape[1]
    assert (bare[-1, :80] == bare[-1, 0]).all()


def test_a_picture_without_results_stops_no_other(folder, capsys):
    (folder / "two" / "a.json").unlink()
    assert run(folder) == 2
    assert "a.json; label the picture first" in capsys.readouterr().err
    assert (folder / "out" / "b_compared.png").exists()


def test_a_video_is_no_picture(folder, capsys):
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    assert run(folder, image="clip.mp4") == 2
    assert "clip.mp4 is a video, and only pictures are compared; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--opacity", "2"), "--opacity is 2.0; give a number from 0"),
        (("--config.inference.image_size=3",), "compare runs no model, so .*image_size=3 says nothing to it"),
    ],
)
def test_mistakes(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        run(folder, *arguments)


def test_a_folder_that_is_none(folder):
    with pytest.raises(UserError, match="three is no folder of results; label the pictures first"):
        compare.main([str(folder / "one"), str(folder / "three"), "--image", str(folder / "photos")])


def test_a_place_that_cannot_be_written(folder, capsys):
    (folder / "out" / "a_compared.png").mkdir(parents=True)
    assert run(folder, image="photos/a.png") == 2
    assert "a_compared.png cannot be written" in capsys.readouterr().err
