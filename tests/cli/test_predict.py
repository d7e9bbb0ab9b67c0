"""The command line: what it writes, and one sentence for everything that cannot be done."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.cli import picture_job, request
from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.errors import UserError, run_command
from dinov3seg_jax.pictures.places import output_places
from dinov3seg_jax.store.run import write_config

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
CLASSES = "red circle, grass"


@pytest.fixture
def loads(monkeypatch, model, tmp_path):
    """The calls of `load`, which returns a model with random weights for the folder "run"."""
    calls = []
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "run", model.config)
    monkeypatch.setattr(request, "load", lambda *arguments, zero_shot: calls.append(arguments) or model)
    return calls


def save(path, size=None):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(PICTURE if size is None else PICTURE[:size]).save(path)
    return path


def arguments(image, out, classes=CLASSES, *more):
    return ["--image", str(image), "--classes", classes, "--checkpoint", "run", "--out", str(out), *more]


def test_one_picture(loads, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(save(tmp_path / "scene.png"), out, CLASSES, "--config.inference.mode=whole")) == 0
    assert sorted(path.name for path in out.iterdir()) == ["scene.json", "scene_labels.png", "scene_overlay.png"]
    assert json.loads((out / "scene.json").read_text())["file"] == "scene.png"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] == "2 classes: red circle, grass"
    assert "scene.png: 40 x 30, " in lines[1]
    assert lines[1].endswith(f"-> {out / 'scene_overlay.png'}")
    assert [(str(path), overrides) for path, overrides in loads] == [("run", ["inference.mode=whole"])]


def test_class_names_of_a_file(loads, tmp_path):
    (tmp_path / "names.txt").write_text("red circle\ngrass\n")
    assert main(arguments(save(tmp_path / "a.png"), tmp_path / "out", f"@{tmp_path / 'names.txt'}")) == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text())["names"] == ["red circle", "grass"]


@pytest.mark.usefixtures("loads")
def test_what_stands_beside_the_names(tmp_path, capsys):
    more = ["--background", "sky, sea", "--min_confidence", "1", "--unknown", "none of these"]
    assert main(arguments(save(tmp_path / "a.png"), tmp_path / "out", "dog|puppy, grass", *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '2 classes: dog (asked as "dog | puppy"), grass; background: sky, sea; none of these: below 1'
    assert "a.png: 40 x 30, none of these 100.0%" in lines[1]
    summary = json.loads((tmp_path / "out" / "a.json").read_text())
    assert summary["names"] == ["dog", "grass", "background", "none of these"]
    assert summary["asked"]["names"] == [{"name": "dog", "synonyms": ["puppy"]}, "grass"]
    assert set(np.asarray(Image.open(tmp_path / "out" / "a_labels.png")).ravel()) == {3}


@pytest.mark.usefixtures("loads")
def test_a_folder_with_a_bad_picture(tmp_path, capsys):
    folder = tmp_path / "pictures"
    for name in ("a.png", "a.jpg", "b.png"):
        save(folder / name)
    save(folder / "deeper" / "a.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:1000])
    assert main(arguments(folder, tmp_path / "out")) == 2
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*_labels.png"))
    assert written == ["a_jpg_labels.png", "a_png_labels.png", "deeper/a_labels.png"]
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 5  # the names, three pictures, the rate
    assert lines[4].startswith("3 pictures in ")
    assert lines[4].endswith(f" images/s; results are in {tmp_path / 'out'}")
    errors = captured.err.splitlines()
    assert "b.png is truncated or damaged" in errors[0]
    assert errors[1] == "error: 1 of 4 pictures could not be segmented; see above"


@pytest.mark.parametrize(
    ("below", "stems"),
    [
        ("a.png", "a"),
        ("a.png a.jpg b.png", "a_png a_jpg b"),
        ("a.png a.jpg a_png.jpg", "a.png a_jpg a_png_jpg"),
        ("a.b.png a.b.jpg a_b.png a_b.jpg", "a.b.png a.b.jpg a_b.png a_b.jpg"),
        ("a.png a.jpg a_png.jpg a.png.gif", "a.png a_jpg a_png_jpg a_png_gif"),
        ("a.png d/a.jpg d.e/a.jpg", "a d/a d.e/a"),
    ],
)
def test_results_of_no_two_pictures_have_one_name(tmp_path, below, stems):
    paths = [tmp_path / name for name in below.split()]
    for order in (1, -1):
        places = output_places(dict.fromkeys(paths[::order], tmp_path), Path("out"))
        assert places == [Path("out", stem) for stem in stems.split()][::order]


def test_pictures_of_several_folders_take_the_names_of_their_folders():
    roots = {Path("/x/a/1.png"): Path("/x/a"), Path("/x/b/1.png"): Path("/x/b"), Path("/x/c/2.png"): Path("/x/c")}
    assert output_places(roots, Path("out")) == [Path("out", name) for name in ("a_1.png", "b_1.png", "2")]
    same = {Path("/x/a/1.png"): Path("/x/a"), Path("/y/a/1.png"): Path("/y/a")}
    assert output_places(same, Path("out")) == [Path("out", name) for name in ("x_a_1.png", "y_a_1.png")]


def test_several_pictures_and_a_folder(loads, tmp_path, capsys):
    first = save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "2.png")
    (tmp_path / "b" / "3.dng").touch()
    command = arguments(first, tmp_path / "out")
    command.insert(2, str(tmp_path / "b"))
    assert main(command) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*.json")) == ["1.json", "2.json"]
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "2 classes: red circle, grass"
    assert said.err.splitlines()[-1] == "note: 1 file passed over: 1 .dng"
    assert said.out.splitlines()[-1].endswith(f"results are in {tmp_path / 'out'}")
    assert main(command) == 0
    assert "2 of 2 pictures are done already" in capsys.readouterr().out


def test_a_picture_from_standard_input(loads, tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    with path.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert main(arguments("-", tmp_path / "out")) == 0
    assert main(arguments(path, tmp_path / "out")) == 0
    assert (tmp_path / "out/stdin_labels.png").read_bytes() == (tmp_path / "out/a_labels.png").read_bytes()


@pytest.mark.usefixtures("loads")
def test_a_list_without_quotes(tmp_path):
    command = ["--image", "a.png", "--checkpoint", "run", "--classes"]
    with pytest.raises(UserError, match='got 2 words; put the list in quotes, as --classes "grass, wood"'):
        main([*command, "grass", "wood"])
    with pytest.raises(UserError, match='as --classes "red circle, wood"'):
        main([*command, "red", "circle,", "wood"])


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("text", ['{"names": ["a"]}', "[1]", "not JSON"])
def test_a_file_of_the_user_is_replaced_only_when_asked(tmp_path, text):
    path = save(tmp_path / "t.png")
    (tmp_path / "t.json").write_text(text)
    for _ in range(2):
        with pytest.raises(UserError, match=r"t.json was not written by this program.*--overwrite"):
            main(arguments(path, tmp_path))
        assert (tmp_path / "t.json").read_text() == text
    assert main([*arguments(path, tmp_path), "--overwrite"]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["names"] == CLASSES.split(", ")


@pytest.mark.usefixtures("loads")
def test_a_picture_that_fails_keeps_its_earlier_results(tmp_path):
    path = save(tmp_path / "a.png")
    assert main(arguments(path, tmp_path / "out")) == 0
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    path.write_bytes(path.read_bytes()[:1000])
    assert main([*arguments(path, tmp_path / "out", "grass"), "--overwrite"]) == 2
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.usefixtures("loads")
def test_one_truncated_picture(tmp_path, capsys):
    path = save(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:1000])
    assert main(arguments(path, tmp_path / "out")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def bad_inputs():
    return {
        "missing image": ({"image": "absent.png"}, "absent.png does not exist"),
        "empty folder": ({"image": "empty"}, "holds no picture"),
        "no class": ({"classes": " , "}, "holds no class name"),
        "doubled class": ({"classes": "cat, dog, cat"}, "'cat' appears twice"),
        "long class": ({"classes": "very " * 90 + "long"}, "prompt of"),
        "missing class file": ({"classes": "@absent.txt"}, "absent.txt cannot be read"),
        "file as output folder": ({"out": "a.png"}, "is a file"),
        "output among the inputs": ({"image": "pictures", "out": "pictures/out"}, "lies in the folder of the pictures"),
        "no memory": ({"more": "--memory=much"}, "which is no amount of memory"),
        "memory without a unit": ({"more": "--memory=4"}, "is '4', which is 4 bytes, less than 1 MB; write the unit"),
        "override of the model": ({"more": "--config.model.late.layers=1"}, "cannot be changed"),
        "unknown option": ({"more": "--config.inference.widow=16"}, "did you mean 'window'"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_refused_before_the_weights_are_read(loads, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    save(tmp_path / "pictures" / "a.png")
    (tmp_path / "empty").mkdir()
    changes, message = bad_inputs()[case]
    options = {"image": "a.png", "out": "out", "classes": CLASSES} | changes
    more = [options["more"]] if "more" in options else []
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: main(arguments(options["image"], options["out"], options["classes"], *more)))
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not loads
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("folder", "message"), [("absent", "does not exist"), (".", "is not a run's folder")])
def test_not_a_checkpoint(tmp_path, monkeypatch, folder, message):
    monkeypatch.chdir(tmp_path)
    wanted = arguments(save(tmp_path / "a.png"), "out")
    wanted[wanted.index("--checkpoint") + 1] = folder
    with pytest.raises(UserError, match=message):
        main(wanted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [["--picture", "x"], []])
def test_unknown_or_missing_arguments(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
    assert "--image" in capsys.readouterr().err


def test_a_line_shows_only_the_largest_classes(model):
    names = [f"thing {letter}" for letter in "abcdefg"]
    line = picture_job.describe(model.segment(PICTURE, names).summary())
    assert line.startswith("40 x 30, thing ")
    assert line.count("%") <= picture_job.CLASSES_SHOWN


HELP_AND_MISTAKES = [
    (["predict", "--help"], "usage: dinov3seg predict"),
    (["warmup", "--help"], "usage: dinov3seg warmup"),
    (["--help"], "usage: dinov3seg COMMAND"),
    (["--picture"], "usage: dinov3seg COMMAND"),
    (["predict", *arguments("a.png", "out", CLASSES, "--batch=0")], "argument --batch: 0 is less than 1"),
    (["predict", *arguments("a.png", "out", CLASSES, "--batch=abc")], "argument --batch: 'abc' is no whole number"),
    (["predict", *arguments("", "out")], "argument --image: the path is empty"),
    (["predict", *arguments("a.png", "")], "argument --out: the path is empty"),
    (["predict", *arguments("absent.png", "out")], "absent.png does not exist"),
    (["predict", *arguments("a.png", "out", "cat, cat")], "'cat' appears twice"),
    (["predict", *arguments("a.png", "out", CLASSES, "--background", "grass")], "name 'grass' of the background"),
    (["predict", *arguments("a.png", "out", CLASSES, "--min_confidence", "nan")], "min_confidence is nan"),
    (["predict", *arguments("a.png", "out", CLASSES, "--unknown", "none")], "--min_confidence, which is not given"),
    (["predict", *arguments("a.png", "out", CLASSES, "--background", "a", "b")], '--background "a, b"'),
    (["predict", *arguments("a.png", "out")], "checkpoint folder 'run' does not exist"),
    (["predict", *arguments("a.png", "out", CLASSES, "--memory", "much")], "'much', which is no amount of memory"),
    (["warmup", "--checkpoint", "run", "--sizes", "640"], "holds '640', which is no size"),
]
WITHOUT_JAX = """
import contextlib, io, json, sys
from dinov3seg_jax.cli.main import main
from dinov3seg_jax.errors import UserError
printed = []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(words)
        except (UserError, SystemExit) as error:
            print(error)
    printed.append(said.getvalue())
assert not {"jax", "flax", "orbax"} & sys.modules.keys()
print(json.dumps(printed))
"""


def test_help_and_mistakes_do_not_wait_for_jax(tmp_path):
    save(tmp_path / "a.png")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    cases, messages = zip(*HELP_AND_MISTAKES, strict=True)
    command = [sys.executable, "-c", WITHOUT_JAX, json.dumps(cases)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for printed, message in zip(json.loads(done.stdout), messages, strict=True):
        assert message in printed
