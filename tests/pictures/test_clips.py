"""Videos: files of every frame, an overlay with the frames' times, and runs that are stopped and go on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.cli import request
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.data import clips as reading
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import clips
from dinov3seg_jax.pictures.clip_job import ClipJob, ClipOptions, clips_to_do
from dinov3seg_jax.pictures.clip_overlay import even
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.text.class_lists import ClassList
from dinov3seg_jax.visualize import Drawing
from tests.clips import painted, read_clip, write_clip, write_h264

av = pytest.importorskip("av")
COUNT = 6
TIMES = [0, 40, 80, 200, 333, 350]
NAMES = ("even", "odd", "right")


class Painter:
    """Says of a painted frame: even or odd in the left half, and right in the other."""

    def __init__(self):
        self.seen = []

    held_bytes = view_bytes = lambda self: 0
    tiles = None

    def batch_shape(self, height, width):
        return height, width

    def check_names(self, names):
        return ClassList.of(names)

    def segment_arrays(self, images, names, batch_size=1, scores=False):
        results = []
        for image in images:
            self.seen.append(int(image[0, 0, 0]))
            labels = np.where(image[..., 0] == 200, 2, image[..., 0] % 2).astype(np.int32)
            confidence = np.full(labels.shape, 0.5, np.float32)
            every = np.stack([np.where(labels == place, 0.75, 0.25) for place in range(3)]).astype(np.float32)
            results.append(Segmentation(labels, confidence, NAMES, image, scores=every if scores else None))
        return results


ASKED = ClassList.of(NAMES)


def job_of(path, out, question=(), **options):
    return ClipJob(Picture(path, out / path.stem), dict(question), ClipOptions(**options))


def run(path, out, batch_size=2, painter=None, **options):
    outcome = clips.segment_clip(painter or Painter(), ASKED, job_of(path, out, **options), batch_size)
    return outcome, json.loads((out / f"{path.stem}.json").read_text())


def labels_of(out, stem="clip"):
    return {path.name: np.asarray(Image.open(path)) for path in sorted((out / f"{stem}_labels").iterdir())}


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mkv", painted(COUNT), TIMES)


def test_every_frame_has_labels_areas_and_an_overlay_at_its_time(clip, tmp_path):
    outcome, summary = run(clip, tmp_path / "out")
    assert outcome.error == ""
    expected = Painter().segment_arrays(painted(COUNT), NAMES)
    labels = labels_of(tmp_path / "out")
    assert list(labels) == [f"{number:07}.png" for number in range(COUNT)]
    for found, result in zip(labels.values(), expected, strict=True):
        np.testing.assert_array_equal(found, result.labels)
    frames, times = read_clip(tmp_path / "out" / "clip_overlay.mp4")
    assert times == [Fraction(time, 1000) for time in TIMES]
    for frame, result in zip(frames, expected, strict=True):
        tinted = result.overlay()[:24, :32].astype(int)
        assert np.abs(frame[:24, :32] - tinted).mean() < 12
    assert summary == outcome.summary | {"segmented": summary["segmented"]}
    assert [row["time"] for row in summary["segmented"]] == [time / 1000 for time in TIMES]
    assert summary["segmented"][3] == {
        "frame": 3,
        "time": 0.2,
        "classes": [
            {"name": "odd", "pixels": 384, "fraction": 0.5, "mean_confidence": 0.5},
            {"name": "right", "pixels": 384, "fraction": 0.5, "mean_confidence": 0.5},
        ],
    }
    assert [(row["pixels"], row["fraction"]) for row in summary["classes"]] == [
        (3 * 384, 0.25),
        (3 * 384, 0.25),
        (6 * 384, 0.5),
    ]
    assert (summary["height"], summary["width"], summary["frames"], summary["names"]) == (24, 32, 6, list(NAMES))


def test_an_overlay_as_it_was_asked_for(clip, tmp_path):
    drawing = Drawing(opacity=1, contours="off", labels=True, legend=False)
    run(clip, tmp_path / "out", drawing=drawing)
    frames, _ = read_clip(tmp_path / "out" / "clip_overlay.mp4")
    result = Painter().segment_arrays(painted(1), NAMES)[0]
    assert frames[0].shape == (24, 32, 3)
    assert np.abs(frames[0].astype(int) - dataclasses.replace(result, drawing=drawing).overlay()).mean() < 12
    with pytest.raises(UserError, match="holds results of clip.mkv with other look; choose another --out"):
        clips_to_do([job_of(clip, tmp_path / "out")], False)


def test_frames_between_carry_the_labels_of_the_last_one(clip, tmp_path):
    painter = Painter()
    _, summary = run(clip, tmp_path / "out", painter=painter, every=4)
    assert painter.seen == [0, 4]
    assert list(labels_of(tmp_path / "out")) == ["0000000.png", "0000004.png"]
    frames, times = read_clip(tmp_path / "out" / "clip_overlay.mp4")
    assert times == [Fraction(time, 1000) for time in TIMES]
    own = Segmentation(labels_of(tmp_path / "out")["0000000.png"].astype(int), np.ones((24, 32)), NAMES, painted(4)[3])
    assert np.abs(frames[3][:24, :32].astype(int) - own.overlay()[:24, :32]).mean() < 12
    assert (summary["frames"], summary["frames_segmented"], summary["every"]) == (6, 2, 4)


def test_labels_as_one_file(clip, tmp_path):
    run(clip, tmp_path / "out", every=2, archive=True)
    found = np.load(tmp_path / "out" / "clip_labels.npz")
    expected = Painter().segment_arrays(painted(COUNT)[::2], NAMES)
    np.testing.assert_array_equal(found["labels"], [result.labels for result in expected])
    assert found["frames"].tolist() == [0, 2, 4]
    assert found["times"].tolist() == [0, 0.08, 0.333]
    assert tuple(found["names"]) == NAMES
    assert not (tmp_path / "out" / "clip_labels").exists()


def test_the_overlay_keeps_the_shape_of_pixels(tmp_path):
    run(write_h264(tmp_path / "clip.mp4", painted(2), Fraction(16, 15)), tmp_path / "out")
    with av.open(str(tmp_path / "out" / "clip_overlay.mp4")) as overlay:
        assert overlay.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


@pytest.mark.parametrize("size", [(23, 31), (17, 3), (1, 1)])
def test_an_odd_picture_gains_a_row_and_a_column(tmp_path, size):
    path = write_clip(tmp_path / "clip.mkv", painted(2, size))
    run(path, tmp_path / "out")
    frames, _ = read_clip(tmp_path / "out" / "clip_overlay.mp4")
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    assert labels_of(tmp_path / "out")["0000000.png"].shape == size
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    np.testing.assert_array_equal(even(picture), np.pad(picture, [(0, n % 2) for n in size] + [(0, 0)], mode="edge"))


class Killed(BaseException):
    """What ends a process between two steps."""


def kill_at(monkeypatch, where, call):
    """The n-th call of a function of `clips` or of a class ends the run, before or after it is done."""
    owner, name, after = where
    original, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(None)
        if len(calls) == call and not after:
            raise Killed
        result = original(*arguments, **options)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, counted)


STEPS = {
    "before a batch": ((Painter, "segment_arrays", False), 2),
    "before labels": ((clips, "write_frame", False), 4),
    "after labels": ((clips, "write_frame", True), 4),
    "before a record": ((clips.ClipJob, "clear", True), 1),
    "while the overlay is written": ((clips, "read_frame", True), 3),
    "before the summary": ((clips, "_write_summary", False), 1),
    "after the summary": ((clips, "_write_summary", True), 1),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("smooth", [0.0, 0.75])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(clip, tmp_path, monkeypatch, step, smooth):
    monkeypatch.setattr(clips, "SECONDS_BETWEEN_MEANS", -1)
    run(clip, tmp_path / "whole", smooth=smooth)
    with monkeypatch.context() as patch:
        kill_at(patch, *STEPS[step])
        with pytest.raises(Killed):
            run(clip, tmp_path / "out", smooth=smooth)
    record = tmp_path / "out" / ".clip.frames.jsonl"
    if record.exists():
        with record.open("a") as lines:
            lines.write('{"frame": 99, "ti')  # as a process leaves it that is killed while it writes
    assert [job.picture.path for job in clips_to_do([job_of(clip, tmp_path / "out", smooth=smooth)], False)] == [clip]
    painter = Painter()
    run(clip, tmp_path / "out", painter=painter, smooth=smooth)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert clips_to_do([job_of(clip, tmp_path / "out", smooth=smooth)], False) == []
    if step not in ("before a batch", "before a record"):
        assert min(painter.seen, default=COUNT) >= 2


def test_what_is_done_is_not_segmented_again(clip, tmp_path):
    run(clip, tmp_path / "out")
    (tmp_path / "out" / "clip_overlay.mp4").unlink()
    painter = Painter()
    run(clip, tmp_path / "out", painter=painter)
    assert painter.seen == []
    assert len(read_clip(tmp_path / "out" / "clip_overlay.mp4")[0]) == COUNT


def test_half_a_batch_runs_again(clip, tmp_path):
    run(clip, tmp_path / "out", batch_size=3)
    painter = Painter()
    run(clip, tmp_path / "out", batch_size=4, painter=painter)
    assert painter.seen == [4, 5]


def test_a_changed_video_begins_anew(clip, tmp_path):
    run(clip, tmp_path / "out")
    write_clip(clip, painted(3))
    (job,) = clips_to_do([job_of(clip, tmp_path / "out")], False)
    outcome = clips.segment_clip(Painter(), ASKED, job, 2)
    assert outcome.summary["frames"] == 3
    assert len(labels_of(tmp_path / "out")) == 3


def test_another_question_is_refused(clip, tmp_path):
    run(clip, tmp_path / "out", question={"names": [1]})
    with pytest.raises(UserError, match="holds results of clip.mkv with other names; choose another --out"):
        clips_to_do([job_of(clip, tmp_path / "out", question={"names": [2]})], False)
    with pytest.raises(UserError, match="other --every and --smooth"):
        clips_to_do([job_of(clip, tmp_path / "out", question={"names": [1]}, every=2, smooth=0.5)], False)
    assert len(clips_to_do([job_of(clip, tmp_path / "out", question={"names": [2]})], True)) == 1


def test_files_that_are_nobodys_stay(clip, tmp_path):
    out = tmp_path / "out"
    (out / "clip_labels").mkdir(parents=True)
    (out / "clip_labels" / "mine.png").write_bytes(b"mine")
    (out / "clip.json").write_text("[1]")
    with pytest.raises(UserError, match="clip.json was not written by this program"):
        clips_to_do([job_of(clip, out)], False)
    (out / "clip.json").unlink()
    run(clip, out, archive=True)
    assert [path.name for path in (out / "clip_labels").iterdir()] == ["mine.png"]


def test_lost_labels_are_named(clip, tmp_path):
    run(clip, tmp_path / "out")
    (tmp_path / "out" / "clip_labels" / "0000003.png").unlink()
    (tmp_path / "out" / "clip_overlay.mp4").unlink()
    outcome = clips.segment_clip(Painter(), ASKED, job_of(clip, tmp_path / "out"), 2)
    assert outcome.summary is None
    assert "0000003.png is lost or damaged; add --overwrite to segment the video again" in outcome.error


def test_what_a_killed_process_left_half_written_is_deleted(clip, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    out = tmp_path / "out"
    (out / "clip_labels").mkdir(parents=True)
    left = [out / f".clip_overlay.mp4.{ended.pid}", out / "clip_labels" / f".0000003.png.{ended.pid}"]
    kept = [out / f".other_overlay.mp4.{ended.pid}", out / f".clip_overlay.mp4.{os.getppid()}"]
    for path in (*left, *kept):
        path.write_bytes(b"half")
    run(clip, out)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_damaged_video_is_done_as_far_as_it_goes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    path = write_clip(tmp_path / "clip.mkv", list(noise))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    outcome, summary = run(path, tmp_path / "out")
    assert "is damaged from" in outcome.error
    assert summary["damage"] == outcome.error
    assert 5 <= summary["frames"] == len(labels_of(tmp_path / "out")) <= 10
    assert len(read_clip(tmp_path / "out" / "clip_overlay.mp4")[0]) == summary["frames"]


def test_a_folder_that_cannot_be_written_is_one_sentence(clip, tmp_path):
    (tmp_path / "out").write_bytes(b"a file")
    outcome = clips.segment_clip(Painter(), ASKED, job_of(clip, tmp_path / "out"), 1)
    assert outcome.summary is None
    assert "cannot be written" in outcome.error


@pytest.fixture
def command(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "run", config)
    monkeypatch.setattr(request, "load", lambda *_, zero_shot: Painter())

    def run(image, *more, out="out"):
        return main(["--image", str(image), "--classes", ",".join(NAMES), "--checkpoint", "run", "--out", out, *more])

    return run


def test_a_folder_of_pictures_and_videos(tmp_path, command, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_clip(folder / "clip.mkv", painted(3))
    Image.fromarray(painted(1)[0]).save(folder / "clip.png")
    (folder / "broken.mp4").write_bytes(b"no video")
    assert command(folder, "--every", "2") == 2
    said = capsys.readouterr()
    assert "clip.mkv: 3 frames in" in said.out
    assert "32 x 24, even 50.0%, right 50.0% -> out/clip_mkv_overlay.mp4" in said.out
    assert "broken.mp4 is no video that can be read" in said.err
    expected = [result.labels for result in Painter().segment_arrays(painted(3)[::2], NAMES)]
    np.testing.assert_array_equal(list(labels_of(tmp_path / "out", "clip_mkv").values()), expected)
    assert (tmp_path / "out" / "clip_png_labels.png").exists()
    (folder / "broken.mp4").unlink()
    assert command(folder, "--every", "2") == 0
    assert "clip.mkv is done already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no picture; 7 files passed over: 5 results of this program"):
        command(tmp_path / "out", out="again")


def test_without_the_library_videos_of_a_folder_are_passed_over(tmp_path, command, monkeypatch, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.fromarray(painted(1)[0]).save(folder / "a.png")
    write_clip(folder / "clip.mkv", painted(1))
    monkeypatch.setattr(reading, "has_reader", lambda: False)
    monkeypatch.setitem(sys.modules, "av", None)
    assert command(folder) == 0
    assert "1 file passed over: 1 .mkv; to read .mkv, install the extra 'video'" in capsys.readouterr().err
    with pytest.raises(UserError, match="install the extra 'video'"):
        command(folder / "clip.mkv", out="other")


def test_a_video_by_itself_and_its_damage_told_again(tmp_path, command, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    path = write_clip(tmp_path / "clip.mkv", list(noise))
    path.write_bytes(path.read_bytes()[:40_000])
    assert command(path, "--every", "9") == 2
    first = capsys.readouterr().err
    assert "is damaged from" in first
    assert command(path, "--every", "9") == 2
    assert capsys.readouterr().err == first
    with pytest.raises(UserError, match="with other --every"):
        command(path)
    assert command(path, "--overwrite", "--every", "5", "--label_stream", "npz") == 2
    assert len(np.load(tmp_path / "out" / "clip_labels.npz")["labels"]) == 1


def test_wrong_options_are_one_sentence(tmp_path, command):
    path = write_clip(tmp_path / "clip.mkv", painted(1))
    for smooth in ("1", "-0.1", "nan", "inf"):
        with pytest.raises(UserError, match="smooth is .*; give a number from 0, for none, to below 1"):
            command(path, f"--smooth={smooth}")


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", painted(100))
    run(path, tmp_path / "whole", smooth=0.75)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.pictures import test_clips as t\n"
        "class Slow(t.Painter):\n"
        "    def segment_arrays(self, *a, **k):\n"
        "        time.sleep(0.02)\n"
        "        return super().segment_arrays(*a, **k)\n"
        "t.clips.SECONDS_BETWEEN_MEANS = 0.1\n"
        "print('begun', flush=True)\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]), painter=Slow(), smooth=0.75)\n"
    )
    pauses = np.random.default_rng(1).uniform(0.05, 0.6, 4)
    for pause in pauses:
        process = subprocess.Popen(
            [sys.executable, script, path, tmp_path / "out"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(path, tmp_path / "out", smooth=0.75)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
