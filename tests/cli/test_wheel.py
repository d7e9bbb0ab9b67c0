"""The wheel in an empty environment, far from the checkout: every command does its work there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.convert.files import official, save
from tests.data.archives import make_voc_20
from tests.zoo.hub import serving

CHECKOUT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
TINY = [
    *("--config.train.steps=2", "--config.train.alignment_steps=2", "--config.train.batch_size=2"),
    *("--config.data.eval.size=2", "--config.data.crop_size=48", "--config.data.short_side=(48,48)"),
    *("--config.model.vision.depth=1", "--config.model.late.layers=1", "--config.model.early.enabled=False"),
    *("--config.report_images=2", "--config.inference.image_size=96"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not UV.is_file(), reason="`make setup` puts uv, which builds the wheel, beside the interpreter"),
]


def run(*words, **options):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel that was built from the sdist, and of the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(UV, "build", "--quiet", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, CHECKOUT)
    return folder


@pytest.fixture(scope="module")
def dinov3seg(built, tmp_path_factory):
    """Runs the command of an environment that holds the wheel and what it needs, in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(UV, "venv", "--quiet", "--python", sys.executable, folder / "v")
    (wheel,) = built.glob("*.whl")
    locked = CHECKOUT / "requirements" / "dev.txt"
    wanted = (f"{wheel}[hub]", "--constraint", locked)
    run(UV, "pip", "install", "--quiet", "--python", folder / "v" / "bin" / "python", *wanted)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["DINOV3SEG_CACHE"] = str(folder / "cache")
    environment["DINOV3SEG_MODELS"] = str(folder / "models")

    def call(*words, **more):
        return run(folder / "v" / "bin" / "dinov3seg", *words, cwd=folder, env=environment | more)

    call.folder, call.environment = folder, environment
    return call


def test_the_sdist_holds_what_the_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    shutil.unpack_archive(sdist, built, filter="data")
    (tree,) = (path for path in built.iterdir() if path.is_dir())
    for name in ("configs/ade.py", "tests/fixtures", "convert/__main__.py", "Makefile", "CHANGELOG.md", "train.py"):
        assert (tree / name).exists(), name


def test_the_wheel_holds_the_package_and_the_recipes_alone(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dinov3seg_jax"}
    recipes = {Path(name).name for name in names if name.startswith("dinov3seg_jax/configs/")}
    assert recipes == {path.name for path in (CHECKOUT / "configs").glob("*.py")}
    assert "dinov3seg_jax/py.typed" in names


def test_every_command_does_its_work(dinov3seg):
    here = dinov3seg.folder
    assert dinov3seg("--version").startswith("dinov3seg_jax ")
    assert "memory of a device when it is fullest" in dinov3seg("plan", "--config", "configs/quickstart.py")

    dinov3seg("train", "--config", "quickstart", *TINY)
    assert (here / "runs" / "quickstart" / "checkpoints" / "2").is_dir()
    assert "miou" in dinov3seg("eval", "--config", "quickstart", *TINY, "--checkpoint", "runs/quickstart")
    assert (here / "runs" / "quickstart" / "report.md").is_file()

    Image.new("RGB", (80, 60), "green").save(here / "a.png")
    asked = ("--checkpoint", "runs/quickstart", "--classes", "grass, wood")
    assert "a.png: 80 x 60, " in dinov3seg("predict", *asked, "--image", "a.png")
    assert (here / "predictions" / "a_labels.png").is_file()
    assert "programs are kept in" in dinov3seg("warmup", *asked, "--sizes", "80x60")
    assert "for cpu, cuda, tpu" in dinov3seg("export", *asked, "--out", "exported")
    check = "import sys, dinov3seg_jax; print(dinov3seg_jax.load_exported(sys.argv[1]).names)"
    assert "('grass', 'wood')" in run(here / "v" / "bin" / "python", "-c", check, "exported", cwd=here)

    save(here / "tiny.safetensors", official("vit_tiny_mlp"))
    said = dinov3seg("convert", "dinov3", "--source", "tiny.safetensors", "--out", "tiny")
    assert "arrays of vision/backbone" in said
    assert "passed" in dinov3seg("verify", "tiny", "--source", "tiny.safetensors")

    archives = make_voc_20(here / "archives").archives
    words = ("--source", *archives, "--out", "voc", "--allow_partial", "--workers", "1")
    assert "of eval" in dinov3seg("prepare", "voc_20", *words)


# A model of the released layout is gigabytes; this table has a small one, as the hub has it under the same name.
WITH_A_SMALL_MODEL = """
import dataclasses, sys
from dinov3seg_jax.store.released import RELEASED, PublishedFile
files = (PublishedFile("model.safetensors", "google/tipsv2-b14"),)
small = {"kind": "dinotxt", "files": files, "width": 64, "parameters": 1}
RELEASED["tipsv2-b14"] = dataclasses.replace(RELEASED["tipsv2-b14"], **small)
from dinov3seg_jax.cli.main import main
sys.exit(main())
"""


def test_a_model_by_its_name(dinov3seg):
    here = dinov3seg.folder
    assert "tipsv2-b14" in dinov3seg("models")
    content = save(here / "small.safetensors", official("dinotxt_tiny")).read_bytes()
    with serving(files={"/google/tipsv2-b14/resolve/main/model.safetensors": content}) as hub:
        hub.faults = ["cut"]
        environment = dinov3seg.environment | {"HF_ENDPOINT": hub.url, "HF_HOME": str(here / "hf")}
        python = here / "v" / "bin" / "python"
        said = run(python, "-c", WITH_A_SMALL_MODEL, "fetch", "tipsv2-b14", cwd=here, env=environment)
    assert "next:\n  dinov3seg predict --model tipsv2-b14" in said
    Image.new("RGB", (80, 60), "green").save(here / "b.png")
    asked = ("--model", "tipsv2-b14", "--image", "b.png", "--classes", "grass, wood", "--out", "named")
    assert "b.png: 80 x 60, " in dinov3seg("predict", *asked, "--config.zero_shot.mode=whole")
    assert (here / "named" / "b_labels.png").is_file()
