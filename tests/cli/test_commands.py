"""The scripts from end to end in a folder of one's own, and one sentence for every mistake on a command line."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinov3seg_jax
import eval as eval_script
import train as train_script
from dinov3seg_jax.cache import programs
from dinov3seg_jax.cli import main as command
from dinov3seg_jax.cli import predict, prepare, warmup
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.data.painted import CLASS_NAMES, SEEN_CLASSES, PaintedScenes
from dinov3seg_jax.errors import UNREAD, UserError, run_command
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.store.run import read_config, write_config
from dinov3seg_jax.training.loop import train
from tests.tiny import MODEL

TINY_CONFIG = """
from dinov3seg_jax.config import default_config, to_config_dict
from tests.tiny import MODEL


def get_config():
    config = default_config()
    config.model = to_config_dict(MODEL)
    config.data.train.image_size = config.data.eval.image_size = 48
    config.data.eval.size = 3
    config.data.crop_size = 32
    config.data.short_side = (32, 40)
    config.data.classes_per_image = 4
    config.train.batch_size = 2
    config.train.log_every = 1
    config.inference.image_size = 48
    config.inference.window = 32
    config.inference.stride = 16
    config.report_images = 2
    return config
"""


def run_script(*words, status=0):
    """Start a script as a user would and return what it printed."""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds config.py and a run that train.py and eval.py made from it, with what each of them printed."""
    folder = tmp_path_factory.mktemp("commands")
    config, run = folder / "config.py", folder / "run"
    config.write_text(TINY_CONFIG)
    options = (f"--config.workdir={run}", "--config.train.steps", 3)
    for name, words in {"train": options, "eval": ("--checkpoint", run)}.items():
        done = run_script(f"{name}.py", "--config", config, *words)
        (folder / f"{name}.out").write_text(done.stdout)
    return folder


def test_train_leaves_a_run(folder):
    run = folder / "run"
    assert len((run / "log.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["3"]
    assert json.loads((run / "config.json").read_text())["train"]["steps"] == 3
    drawn, begun = (folder / "train.out").read_text().splitlines()[:2]
    assert drawn.startswith("drawn at random: decoder, ")
    assert begun.startswith(f"training {run} from step 0 to 3 on ")


def test_eval_leaves_scores_and_a_report_with_pictures(folder):
    run = folder / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["images"] == 3
    assert metrics["train_seconds"] > 0
    assert metrics["eval_seconds"] > 0
    assert metrics["inference"]["window"] == 32
    rows = metrics["classes"]
    assert [row["name"] for row in rows] == list(CLASS_NAMES)
    assert [row["seen"] for row in rows] == [name in SEEN_CLASSES for name in CLASS_NAMES]
    assert sum(row["pixels"] for row in rows) == 3 * 48 * 48
    scored = [row["iou"] for row in rows if row["iou"] is not None]
    assert metrics["miou"] == pytest.approx(np.mean(scored))
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (run / "report.md").read_text())
    assert len(links) == 5  # two first ones, the worst, the best, and the confusion matrix
    for link in links:
        with Image.open(run / link) as picture:
            assert picture.width > 3 * 48
    printed = (folder / "eval.out").read_text()
    assert f"{metrics['miou']:.2f} %" in printed
    assert f"{run / 'report.md'} and metrics.json are written" in printed


@pytest.mark.slow
def test_calibrate_changes_confidences_and_no_label(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    scene = PaintedScenes("eval", 1, 48, 0)[0]["image"]
    before = dinov3seg_jax.load(run).segment(scene, CLASS_NAMES)
    recipe = ["--config", str(folder / "config.py")]
    assert command.main(["calibrate", "--checkpoint", str(run), *recipe, "--config.data.eval.size=2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2 pictures, 4,608 labelled pixels, ")
    assert re.match(r"temperature \S+: expected calibration error \S+% before, \S+% after", printed[1])
    assert printed[2] == f"{run / 'calibration.json'} is written; predict and load use it from now on"
    temperature = json.loads((run / "calibration.json").read_text())["run"]["temperature"]
    after = dinov3seg_jax.load(run).segment(scene, CLASS_NAMES)
    np.testing.assert_array_equal(after.labels, before.labels)
    logits = np.log(before.confidence / (1 - before.confidence))
    np.testing.assert_allclose(after.confidence, 1 / (1 + np.exp(-logits / temperature)), atol=1e-5)
    with pytest.raises(UserError, match="--config.data.eval.size=2 is for --config RECIPE; with --data give --split"):
        command.main(["calibrate", "--checkpoint", str(run), "--data", "x", "--config.data.eval.size=2"])


def test_predict_labels_a_picture_at_its_own_size(folder):
    scene = PaintedScenes("eval", 1, 70, 0)[0]["image"][:60]
    picture, out = folder / "scene.png", folder / "out"
    Image.fromarray(scene).save(picture)
    words = ("--image", picture, "--classes", "grass, red ball, water", "--checkpoint", folder / "run", "--out", out)
    printed = run_script("predict.py", *words).stdout
    assert printed.startswith(f"3 classes: grass, red ball, water\n{picture}: 70 x 60, ")
    summary = json.loads((out / "scene.json").read_text())
    assert summary["names"] == ["grass", "red ball", "water"]
    with Image.open(out / "scene_labels.png") as labels, Image.open(out / "scene_overlay.png") as overlay:
        assert labels.size == (70, 60)
        assert set(np.unique(labels)) <= {0, 1, 2}
        assert overlay.width >= 70


def test_a_mistake_ends_a_script_with_status_2_and_one_line(tmp_path):
    done = run_script("train.py", "--config", tmp_path / "absent.py", status=2)
    assert done.stdout == ""
    assert re.fullmatch(r"error: config '.*absent\.py' does not exist; [^\n]*\n", done.stderr)


@pytest.mark.parametrize("script", ["train.py", "eval.py", "predict.py", "-mdinov3seg_jax"])
def test_ctrl_c_has_one_line_for_an_answer_from_the_start(tmp_path, script):
    (tmp_path / "pydantic.py").write_text("raise KeyboardInterrupt")  # is imported early
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    done = subprocess.run([sys.executable, script, "predict"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("stdout", "status", "said"),
    [
        ("pipe", UNREAD, ""),
        ("/dev/full", 2, r"error: the output cannot be written \(No space left .*\); make .*\n"),
    ],
)
def test_output_that_nobody_reads_or_that_finds_no_room(stdout, status, said, unbuffered):
    if stdout == "pipe":
        end, output = os.pipe()
        os.close(end)
    else:
        output = os.open(stdout, os.O_WRONLY)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    words = [sys.executable, "-m", "dinov3seg_jax", "--help"]
    done = subprocess.run(words, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
    os.close(output)
    assert done.returncode == status
    assert re.fullmatch(said, done.stderr)


def test_names_that_the_terminal_cannot_show():
    code = "from dinov3seg_jax.errors import run_command; run_command(lambda: print('bad\\udcff.jpg, \u72ac'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "bad\\udcff.jpg, \\u72ac\n"), done.stderr


def test_a_path_that_cannot_be_examined_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: Path("x" * 300).stat() and None)
    assert caught.value.code == 2
    assert re.fullmatch(r"error: x{300} cannot be used \(File name too long\); check [^\n]*\n", capsys.readouterr().err)
    with pytest.raises(OSError, match="a mistake of ours"):
        run_command(lambda: (_ for _ in ()).throw(OSError("a mistake of ours")))


def test_a_config_that_cannot_be_read(tmp_path, monkeypatch):
    write_config(tmp_path, Config(model=MODEL))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "not yours")))
    with pytest.raises(UserError, match=r"config.json cannot be read \(not yours\)"):
        read_config(tmp_path)


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(UserError, match="there is no command 'foo'"):
        command.main(["foo"])
    assert "predict    segment pictures" in capsys.readouterr().err


def test_a_mistyped_command_has_a_hint():
    with pytest.raises(UserError, match=r"there is no command 'predcit' \(did you mean 'predict'\?\)"):
        command.main(["predcit"])


def test_the_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dinov3seg_jax {dinov3seg_jax.__version__}\n"


def test_a_shell_can_complete_every_command(capsys):
    assert command.main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(f"_dinov3seg_{word}_" in script for word in command.COMMANDS)
    assert "--zero_shot" in script
    with pytest.raises(UserError, match="one of bash, zsh, tcsh"):
        command.main(["--completion"])


def test_completion_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(UserError, match="completion needs shtab; install it"):
        command.main(["--completion", "bash"])


@pytest.mark.parametrize("word", command.COMMANDS)
def test_every_command_knows_its_name(capsys, word):
    with pytest.raises(SystemExit) as caught:
        command.main([word, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: dinov3seg {word} ")


CONFIG_FILE = "configs/quickstart.py"
TRAIN, EVAL = train_script.main, eval_script.main
MISTAKES = {
    "unknown option": (TRAIN, ["--config", CONFIG_FILE, "--config.train.stepz=3"], "no option 'train.stepz'"),
    "wrong type": (TRAIN, ["--config", CONFIG_FILE, "--config.train.steps=x"], "'train.steps' is 'x'"),
    "unknown data set": (TRAIN, ["--config", CONFIG_FILE, "--config.data.train.name=ade"], "no data set 'ade'"),
    "no data": (TRAIN, ["--config", "configs/ade.py"], "set --config.data.train.root= to it"),
    "no such data": (TRAIN, ["--config", "configs/ade.py", "--config.data.train.root=absent"], "does not exist"),
    "devices": (TRAIN, ["--config", CONFIG_FILE, "--config.model_parallel=7"], "devices were asked for"),
    "no checkpoint folder": (EVAL, ["--config", CONFIG_FILE, "--checkpoint", "absent"], "'absent' does not exist"),
    "not a run's folder": (EVAL, ["--config", CONFIG_FILE, "--checkpoint", "empty"], "is not a run's folder"),
    "a file, not a folder": (EVAL, ["--config", CONFIG_FILE, "--checkpoint", CONFIG_FILE], "is a file; name a folder"),
    "no checkpoint yet": (EVAL, ["--config", CONFIG_FILE, "--checkpoint", "early"], "holds no complete checkpoint"),
    "missing image": (predict.main, ["--image", "absent.png", "--classes", "a"], "absent.png does not exist"),
    "no images": (predict.main, ["--image", "empty", "--classes", "a"], "holds no picture"),
    "an override without a recipe": (
        prepare.main,
        ["ade20k_150", "--source", "a.zip", "--out", "out", "--config.seed=1"],
        "--config.seed=1 changes nothing here",
    ),
    "a slice without a plan": (TRAIN, ["--config", CONFIG_FILE, "--topology", "v5e:2x2"], "--topology goes with"),
    "no size": (warmup.main, ["--checkpoint", "empty", "--sizes", "640x480,big"], "--sizes holds 'big'"),
    "doubled class": (predict.main, ["--image", "empty", "--classes", "cat, dog, cat"], "'cat' appears twice"),
}


def test_a_warmup_that_nothing_is_kept_of(tmp_path, monkeypatch):
    write_config(tmp_path / "run", Config(model=MODEL))
    monkeypatch.setattr(programs, "keep_programs", lambda: None)
    with pytest.raises(UserError, match="nothing can be kept, as the cache is off, .*set DINOV3SEG_CACHE"):
        warmup.main(["--checkpoint", str(tmp_path / "run")])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, mistake):
    main, words, message = MISTAKES[mistake]
    (tmp_path / "configs").symlink_to(Path("configs").absolute())
    (tmp_path / "empty").mkdir()
    write_config(tmp_path / "early", Config(model=MODEL))
    monkeypatch.chdir(tmp_path)
    checkpoint = ["--checkpoint", "empty"] if main is predict.main else []
    monkeypatch.setattr(sys, "argv", ["script.py", *words, *checkpoint])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", printed.err)
    assert message in printed.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("main", "words"),
    [(TRAIN, []), (TRAIN, ["--config", "a.py", "--dryrun"]), (EVAL, ["--config", "a.py"]), (predict.main, [])],
)
def test_unknown_or_missing_words_show_the_usage(monkeypatch, capsys, main, words):
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("usage: ")
    assert len(re.findall("error: ", errors)) == 1


@pytest.mark.slow
def test_a_folder_of_photographs_trains_and_is_scored(samples, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV3SEG_SAMPLES", str(samples))
    overrides = {
        "workdir": tmp_path / "run",
        "data.crop_size": 32,
        "data.short_side": "(32, 40)",
        "train.steps": 3,
        "train.alignment_steps": 3,
        "train.batch_size": 2,
        "train.log_every": 1,
        "inference.image_size": 48,
        "inference.window": 32,
        "inference.stride": 16,
        "report_images": 1,
    }
    config = load_config("configs/samples.py", [f"{name}={value}" for name, value in overrides.items()])
    config = dataclasses.replace(config, model=MODEL)
    result = evaluate(config, train(config))
    assert 0 <= result["pixel_accuracy"] <= 100
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["images"] == len(list((samples / "coco_panoptic" / "images" / "train").iterdir()))
    listed = json.loads((samples / "coco_panoptic" / "classes.json").read_text())
    assert len(metrics["classes"]) == len(listed)
    assert all(row["seen"] in (None, True) for row in metrics["classes"])


@pytest.mark.slow
@pytest.mark.parametrize(("config", "classes"), [("ade", 150), ("coco_stuff", 171)])
def test_a_dry_run_counts_the_papers_model(tmp_path, config, classes):
    printed = run_script("train.py", "--config", f"configs/{config}.py", "--dry_run").stdout
    counts = {
        match[1].strip(): tuple(int(number.replace(",", "")) for number in match.groups()[1:])
        for match in re.finditer(r"^(\S.*?) {2,}([\d,]+) +([\d,]+)$", printed, re.MULTILINE)
    }
    assert sum(counts["vision backbone (DINOv3)"]) == 303_154_176 + 16  # the last are RoPE's periods
    assert counts["Semantic Prior Encoder (SAM)"] == (0, 308_278_272)
    assert counts["late refinement"][1] == 0
    totals = counts.pop("together")
    assert totals == tuple(map(sum, zip(*counts.values(), strict=True)))
    assert f"{classes} of {classes} classes each" in printed
    assert printed.endswith("nothing was allocated, read or written\n")
