"""Folders of pictures: overlapped, in batches, and safe to stop at any moment."""

import ast
import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax import files
from dinov3seg_jax.cli import request
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.config_files import override_inference
from dinov3seg_jax.data.paper import Pixels
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.pictures import batches as pictures
from dinov3seg_jax.pictures import finished, huge
from dinov3seg_jax.pictures.batches import BATCHES_AHEAD, THREADS, segment_pictures
from dinov3seg_jax.pictures.finished import RUN_FILE, Picture
from dinov3seg_jax.store.run import write_config

RNG = np.random.default_rng(0)
CLASSES = "red circle, grass, sky"
SIZES = ((30, 40), (64, 20), (30, 40), (50, 50), (64, 20))
PLENTY = 10**12


@pytest.fixture
def folder(tmp_path, monkeypatch, model):
    """Five pictures of three sizes, with "run" beside them; `load` returns a model with random weights."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "run", model.config)
    monkeypatch.setattr(request, "load", lambda *_, zero_shot: model)
    return make_pictures(tmp_path / "pictures", SIZES)


def make_pictures(folder, sizes):
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number:03}.png")
    return folder


def words(folder, out, *more, classes=CLASSES):
    return ["--image", str(folder), "--classes", classes, "--checkpoint", "run", "--out", str(out), *more]


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def listed(folder, out):
    return [Picture(path, out / path.stem) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def short_side(model):
    """A model without weights, for which pictures of one aspect ratio have one size."""
    return Segmenter(override_inference(model.config, ["inference.resize=short_side"]), {})


def test_results_in_batches_are_those_of_single_pictures(folder, model, tmp_path):
    assert main(words(folder, "out", "--batch", "2")) == 0
    for picture in listed(folder, tmp_path / "out"):
        alone = model.segment(picture.path, CLASSES)
        summary = json.loads(picture.summary.read_text())
        assert summary["file"] == picture.path.name
        means = [row["mean_confidence"] for row in alone.summary()["classes"]]
        assert [row["mean_confidence"] for row in summary["classes"]] == pytest.approx(means, abs=1e-4)
        with Image.open(tmp_path / "out" / f"{picture.path.stem}_labels.png") as labels:
            assert (np.asarray(labels) == alone.labels).mean() > 0.999


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_picture_gets_its_own_result_and_runs_with_its_like(folder, short_side, monkeypatch, tmp_path, batch):
    sizes = []

    def answer(images, names, batch_size, scores):
        """Its first pixel is the picture's label."""
        assert len(images) <= batch_size == batch
        sizes.append({image.shape[:2] for image in images})
        areas = [image.shape[:2] for image in images]
        labels = [np.full(area, image[0, 0, 0], np.int32) for area, image in zip(areas, images, strict=True)]
        pairs = zip(labels, images, strict=True)
        return [Segmentation(label, np.ones(label.shape), names, image) for label, image in pairs]

    monkeypatch.setattr(short_side, "segment_arrays", answer)
    broken = folder / "002.png"
    broken.write_bytes(broken.read_bytes()[:100])
    wanted, names = listed(folder, tmp_path / "out"), tuple(map(str, range(256)))
    outcomes = list(segment_pictures(short_side, names, wanted, set(wanted), batch, PLENTY))
    assert sorted(outcome.picture for outcome in outcomes) == wanted
    for outcome in outcomes:
        if outcome.picture.path == broken:
            assert outcome.summary is None
            assert "is truncated or damaged" in outcome.error
            continue
        with Image.open(outcome.picture.path) as picture, Image.open(f"{outcome.picture.target}_labels.png") as labels:
            assert (np.asarray(labels) == np.asarray(picture)[0, 0, 0]).all()
            assert labels.size == picture.size
    assert all(len(of_batch) <= 1 for of_batch in sizes)
    assert len([of_batch for of_batch in sizes if of_batch]) == (4 if batch == 1 else 3)


def test_a_picture_runs_in_the_same_batch_whatever_else_is_done(folder, short_side, monkeypatch):
    batches = []
    monkeypatch.setattr(
        pictures, "_segment", lambda _, __, images, *___: batches.append(images) or [UserError("no")] * len(images)
    )
    every = listed(folder, folder)
    for wanted in (every, every[2:3]):
        outcomes = segment_pictures(short_side, ("a",), every, set(wanted), 2, PLENTY)
        assert sorted(outcome.picture for outcome in outcomes) == wanted
    assert len(batches) == 3 + 1
    np.testing.assert_array_equal([image.rgb for image in batches[3]], [image.rgb for image in batches[0]])


@pytest.mark.parametrize(
    ("room", "most_beside"),  # the picture that was just written
    [(PLENTY, (BATCHES_AHEAD + 1) * 2 + max(2, THREADS)), (5 * 16 * huge.BYTES_PER_PIXEL, 4), (1, 0)],
)
def test_only_a_few_pictures_are_in_memory(tmp_path, model, monkeypatch, room, most_beside):
    """In a little room, as many whole batches as there is room for, or a single picture."""
    monkeypatch.setattr(huge, "room_for_pictures", lambda *_: room)
    monkeypatch.setattr(huge, "needs_streaming", lambda *_: False)
    batch, read, written = 2, itertools.count(), 0
    so_far = [0]
    picture = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(pictures, "pixels_of", lambda *_: so_far.__setitem__(0, next(read) + 1) or Pixels(picture))
    monkeypatch.setattr(pictures, "_segment", lambda _, __, images, *___: [UserError("no")] * len(images))
    wanted = listed(make_pictures(tmp_path / "many", [(4, 4)] * 40), tmp_path)
    most = 0
    for _ in segment_pictures(model, ("a",), wanted, set(wanted), batch, PLENTY):
        time.sleep(0.002)  # a slow disk
        written += 1
        most = max(most, so_far[0] - written)
    assert written == 40
    assert most <= most_beside
    assert most > 0 or room == 1


def test_views_too_large_for_the_memory_are_refused(folder, model):
    wanted = listed(folder, folder)
    with pytest.raises(UserError, match="^inference.image_size 48 takes about 0 GB, more than --memory allows"):
        list(segment_pictures(model, ("a",), wanted, set(wanted), 1, 10**4))


def test_a_picture_too_large_for_the_memory_goes_tile_by_tile(folder, model, monkeypatch, capsys):
    asked = []

    def segment_file(model, source, names, out_folder, stem, memory, **_):
        asked.append((source.name, names, out_folder.name, stem, memory))
        if source.name == "001.png":
            raise UserError("001.png is too much")
        return model.segment(source, names).summary()

    monkeypatch.setattr(huge, "needs_streaming", lambda look, *_: (look.width, look.height) == (20, 64))
    monkeypatch.setattr(huge, "segment_file", segment_file)
    assert main(words(folder, "out", "--memory", "3GB")) == 2
    names = ("red circle", "grass", "sky")
    named = [(file, given.names, *others) for file, given, *others in asked]
    assert named == [(f"{stem}.png", names, "out", stem, 3 * 10**9) for stem in ("001", "004")]
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "error: 001.png is too much"
    assert "4 pictures in " in captured.out


def test_what_is_done_is_passed_over(folder, tmp_path, monkeypatch, capsys):
    assert main(words(folder, "out")) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(before) == 1 + 3 * len(SIZES)
    monkeypatch.setattr(request, "load", None)
    assert main(words(folder, "out")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "5 of 5 pictures are done already"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("missing", ["001.json", "001_labels.png", "001_overlay.png"])
def test_what_is_missing_is_done_again(folder, tmp_path, capsys, missing):
    main(words(folder, "out", "--batch", "2"))
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / missing).unlink()
    capsys.readouterr()
    assert main(words(folder, "out", "--batch", "2")) == 0
    assert contents(tmp_path / "out") == whole
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "4 of 5 pictures are done already"
    assert len(printed) == 4  # that, the names, the picture, the rate


@pytest.mark.parametrize("seconds", [10, -10])
def test_a_picture_that_changed_is_done_again(folder, tmp_path, capsys, seconds):
    main(words(folder, "out"))
    other = (tmp_path / "out" / "001.json").stat().st_mtime + seconds
    os.utime(folder / "001.png", (other, other))
    capsys.readouterr()
    assert main(words(folder, "out")) == 0
    assert capsys.readouterr().out.startswith("4 of 5 pictures are done already")


def test_another_picture_of_the_same_stem_is_done_again(folder, tmp_path, capsys):
    """Also an older one of the same size."""
    main(words(folder, "out"))
    before = (folder / "001.png").stat()
    (folder / "001.png").rename(folder / "001.bmp")  # pictures are recognised by content
    os.utime(folder / "001.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    assert main(words(folder, "out")) == 0
    assert capsys.readouterr().out.startswith("4 of 5 pictures are done already")
    assert json.loads((tmp_path / "out" / "001.json").read_text())["file"] == "001.bmp"


def test_a_picture_that_changes_while_it_waits_is_done_again(folder, tmp_path, monkeypatch, capsys):
    def read(path, name, view):
        os.utime(path, ns=(0, 0))
        return pictures_read(path, name, view)

    pictures_read = pictures.pixels_of
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "pixels_of", read)
        main(words(folder, "out"))
    capsys.readouterr()
    assert main(words(folder, "out")) == 0
    assert "done already" not in capsys.readouterr().out


def test_a_picture_that_was_away_is_asked_the_new_question(folder, tmp_path, capsys):
    main(words(folder, "out", classes="grass, sky"))
    (folder / "001.png").rename(tmp_path / "001.png")
    assert main(words(folder, "out", "--overwrite")) == 0
    (tmp_path / "001.png").rename(folder / "001.png")
    capsys.readouterr()
    assert main(words(folder, "out")) == 0
    assert capsys.readouterr().out.startswith("4 of 5 pictures are done already")
    main(words(folder, "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_picture_that_was_away_keeps_its_answers_to_the_same_question(folder, tmp_path, capsys):
    """A link that leads nowhere for a while is named; the next run passes it over."""
    (folder / "001.png").rename(tmp_path / "001.png")
    (folder / "001.png").symlink_to(tmp_path / "001.png")
    main(words(folder, "out"))
    whole = contents(tmp_path / "out")
    (tmp_path / "001.png").rename(tmp_path / "002.png")
    capsys.readouterr()
    assert main(words(folder, "out")) == 2
    assert "001.png does not exist" in capsys.readouterr().err
    (tmp_path / "002.png").rename(tmp_path / "001.png")
    assert main(words(folder, "out")) == 0
    assert capsys.readouterr().out.startswith("5 of 5 pictures are done already")
    assert contents(tmp_path / "out") == whole


def test_nothing_is_left_of_another_question(folder, tmp_path):
    """Where the picture has none to the new one; also when a killed process left no JSON. Other files stay."""
    main(words(folder, "out", classes="grass, sky"))
    out = tmp_path / "out"
    (out / "003.json").unlink()
    (out / "001_labels.tif").touch()
    (out / "005_labels.png").touch()
    for name in ("001", "003", "005"):
        (folder / f"{name}.png").write_bytes(b"damaged")
    assert main(words(folder, "out", "--overwrite")) == 2
    left = {path.name for path in out.iterdir() if path.name[:3] in ("001", "003", "005")}
    assert left == {"005_labels.png"}


def test_a_file_of_the_user_among_the_results(folder, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "003.json").write_text('{"shapes": []}')
    with monkeypatch.context() as patched:
        patched.setattr(request, "load", None)  # it is found before
        with pytest.raises(UserError, match=r"003.json was not written by this program"):
            main(words(folder, "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["003.json"]
    assert main(words(folder, "out", "--overwrite")) == 0
    main(words(folder, "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_results_that_would_go_into_a_file(folder, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out is a file, but the results need a folder; choose another --out"):
        main(words(folder, "out"))


def test_a_name_too_long_for_its_results(folder, tmp_path, monkeypatch, capsys):
    long = folder / f"{'n' * 251}.png"
    (folder / "001.png").rename(long)
    for skipped in (0, 4):
        assert main(words(folder, "out")) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"error: {long} has a name that is too long for its results; shorten it\n")
        assert captured.out.startswith(f"{skipped} of 5 pictures are done already") == bool(skipped)
        assert len(list((tmp_path / "out").glob("*.json"))) == 1 + 4
        monkeypatch.setattr(request, "load", None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": "grass, sky"}, "holds results of other names; choose another --out, or add --overwrite"),
        ({"more": "--config.inference.mode=whole"}, "holds results of other options"),
        ({"more": "--background=wood"}, "holds results of other background"),
        ({"more": "--synonyms=best"}, "holds results of other use of synonyms"),
        ({"more": "--min_confidence=0.4"}, "holds results of other threshold"),
        ({"more": "--stretch=2,98"}, "holds results of other --stretch"),
        ({"folder": "others"}, "holds results of other pictures"),
        ({"folder": "pictures/001.png"}, "holds results of other pictures"),
        ({"weights": True}, "holds results of other weights"),
    ],
)
def test_another_question_needs_another_folder(folder, tmp_path, changed, message):
    main(words(folder, "out"))
    whole = contents(tmp_path / "out")
    make_pictures(tmp_path / "others", SIZES[:1])
    if "weights" in changed:
        (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "7" / "checksums.json").write_text("{}")
    again = words(changed.get("folder", folder), "out", classes=changed.get("classes", CLASSES))
    again += [changed["more"]] if "more" in changed else []
    with pytest.raises(UserError, match=message):
        main(again)
    assert contents(tmp_path / "out") == whole
    assert main([*again, "--overwrite"]) == 0
    if changed.get("folder") == "pictures/001.png":
        assert not (tmp_path / "out" / RUN_FILE).exists(), "nothing may be taken for done beside it"
    else:
        assert json.loads((tmp_path / "out" / RUN_FILE).read_text())["names"] == again[3].split(", ")


def test_results_of_single_pictures_are_not_taken_for_done(folder, tmp_path, capsys):
    main(words(folder / "001.png", "out", classes="grass, sky"))
    assert not (tmp_path / "out" / RUN_FILE).exists()
    assert main(words(folder, "out")) == 0
    assert "done already" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "001.json").read_text())["names"] == CLASSES.split(", ")


def test_only_what_ended_processes_left_is_cleared_away(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = [f".001_labels.png.{ended.pid}", f".{RUN_FILE}.{ended.pid}", f".002.json.{os.getpid()}"]
    others = [f".001_labels.png.{os.getppid()}", f".notes.json.{ended.pid}", ".001.json.bak", "note"]
    for name in stale + others:
        (out / name).touch()
    finished.begin(out, {"names": []}, listed(folder, out))
    assert {path.name for path in out.iterdir()} == {*others, RUN_FILE}


@pytest.mark.parametrize("earlier", [None, "rock, grass, sky"])
@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4, 8, 14])
def test_a_run_that_stops_while_it_writes_goes_on_and_ends_the_same(folder, tmp_path, monkeypatch, writes, earlier):
    """Also where results of other names lie in the folder."""
    assert main(words(folder, "whole", "--batch", "2")) == 0
    if earlier is not None:
        main(words(folder, "out", classes=earlier))
    left, replace = itertools.count(-writes), os.replace

    def stop(source, target):
        if next(left) >= 0:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            main(words(folder, "out", "--batch", "2", "--overwrite"))
    assert contents(tmp_path / "out") != contents(tmp_path / "whole")
    assert main(words(folder, "out", "--batch", "2")) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


COUNT = """
import sys
import jax
from dinov3seg_jax.cli import request
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.config_files import override_inference
programs = []
def listen(event, seconds, fun_name="", **of):
    if event == "/jax/core/compile/backend_compile_duration":
        programs.append(fun_name)
jax.monitoring.register_event_duration_secs_listener(listen)
main(sys.argv[1:])
print(programs)
"""


@pytest.mark.slow
def test_a_folder_of_many_sizes_compiles_six_programs(tmp_path, config):
    late = dataclasses.replace(config.model.late, layers=2)  # as the method has it
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, late=late))
    save_run(tmp_path / "run", config, initialize(config.model, jax.random.key(0)))
    folder = make_pictures(tmp_path / "pictures", [(30, 120), (300, 60), (400, 700), (60, 61), (16, 16)])
    command = [sys.executable, "-c", COUNT, *words(folder, "out")]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    programs = ast.literal_eval(done.stdout.splitlines()[-1])
    assert 1 < len(programs) <= 6, programs


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, model):
    """Up to twelve times: every fourth while the process starts, else soon after it wrote a result, of three files.

    Prints how many pictures each process had done when it was killed.
    """
    save_run(tmp_path / "run", model.config, model.parameters)
    folder = make_pictures(tmp_path / "pictures", [(30, 120), (60, 60), (110, 40), (60, 60)] * 20)
    script = [sys.executable, os.path.abspath("predict.py")]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "DINOV3SEG_CACHE": str(tmp_path / "cache")}
    options = ["--batch", "3", "--config.inference.resize=short_side"]

    def start(out):
        command = [*script, *words(folder, out, *options)]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    drawn, done, kills, quickest = random.Random(0), 0, [], float("inf")
    while len(kills) < 12 and done < 80:
        process, started = start("out"), time.monotonic()
        more = (len(kills) + 1) % 4
        while more and process.poll() is None and len(list(tmp_path.glob("out/[!.]*.json"))) < done + more:
            time.sleep(0.002)
        if more == 1:
            quickest = min(quickest, time.monotonic() - started)
        time.sleep(drawn.random() * (0.05 if more else quickest))
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = len(list(tmp_path.glob("out/[!.]*.json")))
        kills.append(done)
    print(f"done at each kill: {kills}")
    for path, content in contents(tmp_path / "out").items():
        if not path.name.startswith("."):
            assert content == (tmp_path / "whole" / path).read_bytes(), path
    assert start("out").wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sum(0 < done < 80 for done in kills) >= 6, "most kills must find the work half done"


def save_run(folder, config, parameters):
    from dinov3seg_jax.training.checkpoint import Checkpoints

    write_config(folder, config)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(1, parameters, [np.zeros(1)], {"data": {"next_index": 0}, "train_seconds": 0.0})
    checkpoints.close()
