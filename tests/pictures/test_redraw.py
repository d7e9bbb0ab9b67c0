"""Another look of results that are there: overlays as a fresh run draws them, and no model runs."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.cli import request
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.pictures import redraw
from dinov3seg_jax.pictures.finished import RUN_FILE
from dinov3seg_jax.store.run import write_config

OTHERWISE = ("--contours", "only", "--labels_in_regions")
PICTURES = ("a", "b", "c")


@pytest.fixture
def loads(tmp_path, monkeypatch, model):
    """Three pictures, with "run" beside them; the list counts how often the model is loaded."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "run", model.config)
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for stem in PICTURES:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "pictures" / f"{stem}.png")
    found = []
    monkeypatch.setattr(request, "load", lambda *_, zero_shot: found.append(1) or model)
    return found


def run(out, *more):
    return main(
        ["--image", "pictures", "--classes", "red circle, grass, sky", "--checkpoint", "run", "--out", str(out), *more]
    )


def overlays(out):
    return [(out / f"{stem}_overlay.png").read_bytes() for stem in PICTURES]


def test_what_is_drawn_again_is_what_a_fresh_run_draws(loads, tmp_path, capsys):
    run(tmp_path / "fresh", *OTHERWISE)
    run(tmp_path / "out")
    usual = overlays(tmp_path / "out")
    del loads[:]
    assert run(tmp_path / "out", *OTHERWISE) == 0
    assert capsys.readouterr().out.endswith("3 of them are drawn again, from their labels\n")
    assert overlays(tmp_path / "out") == overlays(tmp_path / "fresh")
    run(tmp_path / "out")
    assert overlays(tmp_path / "out") == usual
    assert not loads


def test_what_looks_so_already_is_left_alone(loads, tmp_path, monkeypatch):
    run(tmp_path / "out", *OTHERWISE)
    monkeypatch.setattr(redraw, "write_whole", lambda *_: pytest.fail("it is drawn again"))
    assert run(tmp_path / "out", *OTHERWISE) == 0
    assert run(tmp_path / "out", "--opacity", "0.2", "--format", "labels,json") == 0


def test_results_of_a_program_without_a_choice_look_as_usual(loads, tmp_path, capsys):
    run(tmp_path / "out")
    record = json.loads((tmp_path / "out" / RUN_FILE).read_text())
    del record["drawing"]
    (tmp_path / "out" / RUN_FILE).write_text(json.dumps(record))
    run(tmp_path / "out")
    assert "drawn again" not in capsys.readouterr().out
    run(tmp_path / "out", *OTHERWISE)
    assert "3 of them are drawn again" in capsys.readouterr().out


def test_new_pictures_and_done_ones_look_alike(loads, tmp_path):
    run(tmp_path / "fresh", *OTHERWISE)
    run(tmp_path / "out")
    (tmp_path / "out" / "b.json").unlink()
    run(tmp_path / "out", *OTHERWISE)
    assert overlays(tmp_path / "out") == overlays(tmp_path / "fresh")


def test_after_all_pictures_anew_nothing_is_left_to_draw(loads, tmp_path, capsys):
    run(tmp_path / "out")
    run(tmp_path / "out", "--overwrite", *OTHERWISE)
    run(tmp_path / "out", *OTHERWISE)
    assert "drawn again" not in capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_is_named_until_it_can(loads, tmp_path, capsys):
    run(tmp_path / "out")
    labels = tmp_path / "out" / "b_labels.png"
    kept = labels.read_bytes()
    labels.write_bytes(b"damaged")
    for _ in range(2):
        assert run(tmp_path / "out", *OTHERWISE) == 2
        said = capsys.readouterr()
        assert "b_labels.png cannot be read" in said.err
        assert "2 of them are drawn again" in said.out
    labels.write_bytes(kept)
    assert run(tmp_path / "out", *OTHERWISE) == 0
    assert "3 of them are drawn again" in capsys.readouterr().out


def test_a_run_that_was_stopped_draws_all(loads, tmp_path, monkeypatch):
    run(tmp_path / "fresh", *OTHERWISE)
    run(tmp_path / "out")
    written = []

    def stop_at_the_second(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_whole(path, content)

    monkeypatch.setattr(redraw, "write_whole", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", *OTHERWISE)
    monkeypatch.setattr(redraw, "write_whole", write_whole)
    run(tmp_path / "out", *OTHERWISE)
    assert overlays(tmp_path / "out") == overlays(tmp_path / "fresh")


def test_results_without_labels(loads, tmp_path, capsys):
    run(tmp_path / "out", "--format", "overlay,json")
    assert run(tmp_path / "out", "--format", "overlay,json", *OTHERWISE) == 2
    assert "a.json has no label map beside it; label the picture again" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(loads, tmp_path, monkeypatch):
    run(tmp_path / "out")

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(redraw, "write_whole", full)
    with pytest.raises(UserError, match="a_overlay.png cannot be written .*; make room for it"):
        run(tmp_path / "out", *OTHERWISE)
    monkeypatch.setattr(redraw, "write_whole", write_whole)
    monkeypatch.setattr("dinov3seg_jax.pictures.finished.write_whole", full)
    with pytest.raises(UserError, match="out cannot be written .*; choose another --out"):
        run(tmp_path / "out", *OTHERWISE)


def test_another_palette_is_another_question(loads, tmp_path):
    run(tmp_path / "out")
    with pytest.raises(UserError, match="out holds results of other palette; choose another --out"):
        run(tmp_path / "out", "--palette", "voc")


def test_a_palette_colours_overlay_and_labels(loads, tmp_path):
    words = "--image pictures/a.png --checkpoint run --out out --palette VOC --contours off --opacity 1 --no_legend"
    main([*words.split(), "--classes", "dog, sheep"])
    with Image.open("out/a_labels.png") as labels, Image.open("out/a_overlay.png") as overlay:
        assert labels.getpalette()[:6] == [64, 0, 128, 128, 64, 0]
        np.testing.assert_array_equal(np.asarray(labels.convert("RGB")), np.asarray(overlay))


@pytest.mark.parametrize("count", [20, 21])
def test_more_classes_than_colour_blind_eyes_tell_apart(loads, capsys, count):
    names = ", ".join("abcdefghijklmnopqrstu"[:count])
    words = "--image pictures/a.png --checkpoint run --out out --palette colorblind"
    main([*words.split(), "--classes", names])
    assert ("all eyes tell 20 colours apart, and these are 21 classes" in capsys.readouterr().err) == (count == 21)


@pytest.mark.parametrize("wrong", [("--opacity", "-1"), ("--opacity", "nan")])
def test_an_opacity_that_is_none(loads, wrong):
    with pytest.raises(UserError, match="--opacity is .*; give a number from 0"):
        run("out", *wrong)
    assert not loads
