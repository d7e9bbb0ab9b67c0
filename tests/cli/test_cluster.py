"""What `predict --cluster` cannot do is one sentence, before Ray starts and before anything is written."""

import contextlib

import pytest
from PIL import Image

from dinov3seg_jax.cli.predict import main
from dinov3seg_jax.cluster import connecting
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import run_command
from dinov3seg_jax.store.run import write_config
from tests.tiny import MODEL


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """What a command line is told, which ends with status 2 and has begun nothing."""

    def never(*_):
        raise AssertionError("Ray was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connecting, "import_ray", lambda: None)
    monkeypatch.setattr(connecting, "connected", never)

    def run(*words, out="out", checkpoint="run"):
        command = [*words, "--classes", "red circle, grass", "--checkpoint", checkpoint, "--out", out]
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as end:
            run_command(lambda: main(command))
        assert end.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        *usage, said = capsys.readouterr().err.splitlines()
        assert not usage or usage[0].startswith("usage: ")
        return said

    return run


@pytest.fixture
def some_files(tmp_path):
    """A run, a picture, a video and a file of many pictures, of all of which only the names are read."""
    write_config(tmp_path / "run", Config(model=MODEL))
    (tmp_path / "mixed").mkdir()
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for name in ("clip.mp4", "s.tar", "mixed/s.TAR", "mixed/b.png"):
        (tmp_path / name).touch()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--cluster local --distributed", "--cluster starts its own processes; leave out --distributed"),
        ("--cluster local --coordinator a:1 --processes 2 --process 0", "--cluster starts its own processes"),
        ("--cluster local --image -", "--image is -, which the machines of a cluster do not see; name files"),
        ("--cluster local --results parquet --format labels", "--results parquet has columns of its own; leave --form"),
        ("--worker gpu=1", "--worker and --results go with --cluster; add that, or leave them out"),
        ("--results parquet", "--worker and --results go with --cluster; add that, or leave them out"),
        *((f"--cluster local --worker {size}", f"'{size}' is no size of a worker; write it as in gpu=1, tpu=4 or cpu")
          for size in ("2", "gpu", "gpu=0", "gpu=1.5", "npu=1", "cpu=inf", "cpu=nan")),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(refused, words, sentence):
    assert sentence in refused("--image", "a.png", *words.split(), checkpoint="nowhere")  # which is not looked for


@pytest.mark.usefixtures("some_files")
@pytest.mark.parametrize("more", [[], ["--results", "parquet"]], ids=["files", "tables"])
@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("a.png clip.mp4", "clip.mp4 is a video, and a cluster segments pictures alone; name the pictures without it"),
        ("s.tar a.png", "a.png is no file of many pictures, as {}/s.tar is; give one kind at a time"),
        ("mixed", "mixed/b.png is no file of many pictures, as {}/mixed/s.TAR is"),
        ("mixed/*", "mixed/b.png is no file of many pictures, as {}/mixed/s.TAR is"),
        ("s.tar empty", "empty is no file of many pictures, as {}/s.tar is"),
        ("t.tar", "t.tar does not exist; check the path"),
        ("s.tar t.tar", "t.tar does not exist; check the path"),
        ("s.tar t.png", "t.png does not exist; check the path"),
        ("s.tar shards/*.tar", "no file matches {}/shards/*.tar; check the pattern"),
        ("empty", "the folder {}/empty holds no picture"),
    ],
)
def test_pictures_that_a_cluster_does_not_take(refused, tmp_path, named, sentence, more):
    assert sentence.format(tmp_path) in refused("--cluster", "local", "--image", *named.split(), *more)


@pytest.mark.usefixtures("some_files")
@pytest.mark.parametrize("image", ["a.png", "s.tar"])
def test_results_that_cannot_be_written(refused, image):
    assert "a.png/out cannot be written (Not a directory); choose another --out" in refused(
        "--cluster", "local", "--image", image, out="a.png/out"
    )


@pytest.mark.usefixtures("some_files")
def test_a_cluster_that_does_not_answer_leaves_no_mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connecting, "import_ray", lambda: None)
    words = ["--image", "a.png", "--classes", "grass", "--checkpoint", "run", "--out", "out"]
    with contextlib.suppress(SystemExit):
        run_command(lambda: main([*words, "--cluster", "127.0.0.1:1"]))
    assert not list((tmp_path / "out").iterdir())
