"""A released model by its name: fetched once, kept, found by that name, and refused in one sentence."""

import dataclasses
import fcntl
import json
import os
import random
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import dinov3seg_jax
from dinov3seg_jax.cli import fetch as fetch_command
from dinov3seg_jax.cli import main as command
from dinov3seg_jax.convert.recognise import KINDS
from dinov3seg_jax.errors import UserError, note
from dinov3seg_jax.evaluation.evaluate import report_folder
from dinov3seg_jax.files import expanded
from dinov3seg_jax.store import kept, released
from dinov3seg_jax.store.converted import is_converted, read_manifest
from dinov3seg_jax.store.folder import load_parameters, open_folder
from dinov3seg_jax.store.released import RELEASED, PublishedFile
from dinov3seg_jax.zoo import download, fetch
from tests.convert.files import official, save
from tests.zoo.hub import serving

FILE = "model.safetensors"
ROW = dataclasses.replace(
    RELEASED["catseg-l"], kind="dinov3", files=(PublishedFile(FILE, "spaces/org/weights"),), width=64, parameters=1
)
PATH = f"/spaces/org/weights/resolve/main/{FILE}"
TWO = """
import sys
from dinov3seg_jax.zoo.fetch import fetch
from tests.zoo.test_fetch import ROW
from dinov3seg_jax.store.released import RELEASED
RELEASED["tiny"] = ROW
print(fetch("tiny"))
"""


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A folder of models, a table, and settings of the hub that are nobody else's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINOV3SEG_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setitem(RELEASED, "tiny", ROW)
    note.cache_clear()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / FILE, official("vit_tiny_mlp")).read_bytes()


@pytest.fixture
def hub(content, monkeypatch):
    with serving(files={PATH: content}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def change_row(monkeypatch, **changes):
    monkeypatch.setitem(RELEASED, "tiny", dataclasses.replace(ROW, **changes))


def with_file(monkeypatch, **changes):
    change_row(monkeypatch, files=(PublishedFile(FILE, "spaces/org/weights", **changes),))


def nothing_kept():
    return not kept.is_kept("tiny")


def test_fetched_once_and_found_by_its_name(hub, content, capsys):
    assert command.main(["fetch", "tiny"]) == 0
    said = capsys.readouterr().out
    digest = sha256(content).hexdigest()
    assert f"{FILE}: sha256 {digest}, with nothing published here to compare it with" in said
    assert "dinov3seg predict --model tiny" in said
    folder = kept.models_folder() / "tiny"
    assert open_folder("tiny").path == folder
    assert read_manifest(folder).sources == [{"name": FILE, "sha256": digest}]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "weights.safetensors"}
    assert [path.name for path in (folder.parent / fetch.WORK).iterdir()] == ["tiny.lock"]  # 2 GB do not stay twice
    asked = len(hub.requests)
    assert fetch.fetch("tiny") == folder
    assert len(hub.requests) == asked


def test_a_known_checksum_is_said_to_be_right_by_silence(hub, content, monkeypatch, capsys):
    with_file(monkeypatch, sha256=sha256(content).hexdigest(), size=len(content))
    fetch_command.main(["tiny"])
    assert "sha256" not in capsys.readouterr().out


def test_another_content_is_not_kept(hub, monkeypatch):
    hub.digest = None
    with_file(monkeypatch, sha256="0" * 64)
    with pytest.raises(UserError, match="damaged or another file"):
        fetch.fetch("tiny")
    assert nothing_kept()


def test_weights_of_another_model_are_not_kept(hub, monkeypatch, tmp_path):
    change_row(monkeypatch, width=96)
    with pytest.raises(UserError, match="another model than 'tiny', 64 wide and not 96"):
        fetch.fetch("tiny")
    change_row(monkeypatch, kind="dinotxt")
    with pytest.raises(UserError, match="a DINOv3 backbone, not dinov3.txt"):
        fetch.fetch("tiny")
    assert nothing_kept()


def test_gated_without_a_token_and_with_one(hub, monkeypatch):
    hub.gated = True
    with pytest.raises(UserError, match=r"gated; ask for it at https://\S+ .*HF_TOKEN=YOUR_TOKEN dinov3seg fetch tiny"):
        fetch.fetch("tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch.fetch("tiny")
    assert hub.requests[-1][2]["authorization"] == "Bearer hf_secret"


def test_offline(hub, monkeypatch, content):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetch.fetch("tiny")
    assert not hub.requests


def test_what_lies_in_the_hubs_cache_is_taken_from_there(hub, monkeypatch, content, tmp_path):
    repository = tmp_path / "hf" / "hub" / "spaces--org--weights"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / FILE).write_bytes(content)
    fetch.fetch("tiny")
    assert not hub.requests
    assert (snapshot / FILE).is_file()


def test_files_that_the_user_names(tmp_path, content, monkeypatch):
    (tmp_path / FILE).write_bytes(content)
    with_file(monkeypatch, sha256="0" * 64)
    with pytest.raises(UserError, match="is not the file that was published under its name"):
        fetch.fetch("tiny", [str(tmp_path / FILE)])
    with pytest.raises(UserError, match="does not exist|no such|cannot"):
        fetch.fetch("tiny", ["nothing.safetensors"])
    (tmp_path / "mine.safetensors").write_bytes(content)
    fetch.fetch("tiny", ["mine.safetensors"])
    assert is_converted(kept.models_folder() / "tiny")
    assert (tmp_path / "mine.safetensors").is_file()
    assert list(fetch.unchecked("tiny")) == ["mine.safetensors"]


def test_links_that_the_user_names(content, monkeypatch):
    with serving(files={"/a/b.safetensors": content}, digest=None) as server:
        with pytest.raises(UserError, match="names no file"):
            fetch.fetch("tiny", [server.url])
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        fetch.fetch("tiny", [f"{server.url}/a/b.safetensors?Signature=s"])
        assert "authorization" not in server.requests[-1][2]  # a link is not the hub
    assert read_manifest(kept.models_folder() / "tiny").sources[0]["name"] == "b.safetensors"


def test_a_link_that_has_ended(monkeypatch, content):
    with serving(files={"/b.safetensors": content}, gated=True) as server:
        monkeypatch.setattr("tests.zoo.hub._Handler._plain", _forbidden)
        with pytest.raises(
            UserError, match=r"not given to you \(the server answers 403\); see https://\S+ for another"
        ):
            fetch.fetch("tiny", [f"{server.url}/b.safetensors"])


def test_a_token_that_is_refused(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    monkeypatch.setattr("tests.zoo.hub._Handler._send", lambda handler, content, fault: _forbidden(handler, 403))
    with pytest.raises(UserError, match="make another token, or unset HF_TOKEN"):
        fetch.fetch("tiny")


def test_a_token_that_is_not_for_everything(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    fetch.fetch("tiny")
    assert "hf_secret" not in str(hub.requests)


def test_a_kept_model_is_not_taken_from_other_files(hub):
    fetch.fetch("tiny")
    with pytest.raises(UserError, match="'tiny' is kept already; delete"):
        fetch.fetch("tiny", ["other.safetensors"])


def _forbidden(handler, status, headers=None):
    handler.send_response(403)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def test_terms_are_accepted_first(hub, monkeypatch, capsys):
    change_row(monkeypatch, accept="a licence")
    with pytest.raises(UserError, match=r"before its terms are accepted \(a licence\).*--accept-licence"):
        command.main(["fetch", "tiny"])
    assert not hub.requests
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)}))
    monkeypatch.setattr("builtins.input", lambda question: "no")
    with pytest.raises(UserError, match="terms"):
        command.main(["fetch", "tiny"])
    monkeypatch.setattr("builtins.input", _end)
    with pytest.raises(UserError, match="terms"):
        command.main(["fetch", "tiny"])
    monkeypatch.setattr("builtins.input", lambda question: "Y" if "a licence" in question else "n")
    assert command.main(["fetch", "tiny"]) == 0


def _end(question):
    raise EOFError


@pytest.mark.parametrize("spelling", ["--accept-licence", "--accept_licence"])
def test_scripts_accept_terms(hub, monkeypatch, spelling):
    change_row(monkeypatch, accept="a licence")
    assert command.main(["fetch", "tiny", spelling]) == 0


def test_what_is_handed_out_is_asked_for():
    with pytest.raises(
        UserError, match=r"'dinotxt' is handed out at https://ai.meta.com/\S+; then run dinov3seg fetch"
    ):
        fetch.fetch("dinotxt")
    with pytest.raises(UserError, match="'cafedino' has to be downloaded by hand from .*--source FILE"):
        fetch.fetch("cafedino")


def test_nothing_is_downloaded_unasked(hub):
    for use in (open_folder, dinov3seg_jax.load):
        with pytest.raises(UserError, match="'tiny' is not here yet; run dinov3seg fetch tiny."):
            use("tiny")
    with pytest.raises(UserError, match="run dinov3seg fetch tiny"):
        command.main(["predict", "--model", "tiny", "--image", "a.png", "--classes", "grass"])
    with pytest.raises(UserError, match="run dinov3seg fetch tiny"):
        command.main(["eval", "--config", "quickstart", "--model", "tiny"])
    assert not hub.requests


def test_names_that_do_not_exist():
    with pytest.raises(UserError, match="no model 'tipsv2-l16' .did you mean 'tipsv2-l14'"):
        fetch.fetch("tipsv2-l16")
    with pytest.raises(UserError, match="no folder 'catseg-m'.*did you mean"):
        open_folder("catseg-m")
    assert open_folder("runs/mine").path == Path("runs/mine")


def test_a_folder_of_that_name_wins(hub, tmp_path, capsys):
    fetch.fetch("tiny")
    (tmp_path / "tiny").mkdir()
    assert open_folder("tiny").path == Path("tiny")
    assert "note: 'tiny' is the folder of that name here" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(hub, tmp_path, monkeypatch):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(UserError, match="cannot be written.*DINOV3SEG_MODELS"):
        fetch.fetch("tiny")


def test_no_room_for_the_conversion(hub, monkeypatch):
    change_row(monkeypatch, parameters=10**18)
    with pytest.raises(UserError, match="4000000000.00 GB are needed"):
        fetch.fetch("tiny")
    assert not hub.requests


def test_something_else_in_its_place(hub, tmp_path):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    with pytest.raises(UserError, match="exists and is no model"):
        fetch.fetch("tiny")


def test_a_conversion_that_was_killed_is_not_taken(hub, tmp_path):
    left = tmp_path / "models" / fetch.WORK / "tiny" / "converted"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    assert nothing_kept()
    fetch.fetch("tiny")
    assert is_converted(tmp_path / "models" / "tiny")


def test_without_the_library_of_the_hub(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"run pip install 'dinov3seg_jax\[hub\]', or name files with --source"):
        fetch.fetch("tiny")


def test_without_torch_nothing_is_downloaded_that_needs_it(hub, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    change_row(monkeypatch, files=(PublishedFile("model_large.pth", "spaces/org/weights"),))
    with pytest.raises(UserError, match=r"model_large.pth can only be read with torch; .*dinov3seg_jax\[convert\]"):
        fetch.fetch("tiny")
    assert not hub.requests


def test_a_tokenizer_belongs_to_the_files(hub, tmp_path, content, monkeypatch):
    (tmp_path / "mine.safetensors").write_bytes(content)
    change_row(monkeypatch, files=(*ROW.files, PublishedFile("tokenizer.model", "spaces/org/weights")))
    with pytest.raises(UserError, match="add its tokenizer.model to --source"):
        fetch.fetch("tiny", ["mine.safetensors"])
    assert nothing_kept()
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"tokenizer.model can only be read with sentencepiece; .*\[tips\]"):
        fetch.fetch("tiny")


def test_scores_lie_in_the_models_folder(hub):
    fetch.fetch("tiny")
    assert report_folder("tiny", True) == kept.models_folder() / "tiny" / "zero_shot"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_time(hub, content, tmp_path, seed):
    hub.pause = 0.005
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", TWO], env=environment, stdout=subprocess.DEVNULL)
    while not hub.requests and time.monotonic() < started + 60:
        time.sleep(0.002)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.kill()
    process.wait()
    if kept.is_kept("tiny"):
        load_parameters("tiny")
    fetch.fetch("tiny")
    _, arrays = load_parameters("tiny")
    assert {name: sha256(np.asarray(array).tobytes()).hexdigest() for name, array in arrays.items()} == dict(
        open_folder("tiny").checksums
    )
    assert read_manifest(kept.models_folder() / "tiny").sources[0]["sha256"] == sha256(content).hexdigest()


@pytest.mark.slow
def test_a_fetched_catseg_is_used_as_it_was_published(monkeypatch, tmp_path):
    path = "/spaces/hamacojr/CAT-Seg-weights/resolve/main/model.safetensors"
    weights = save(tmp_path / "model.safetensors", official("catseg_model"))
    width = official("catseg_model")["sem_seg_head.predictor.clip_model.visual.class_embedding"].shape[0]
    file = PublishedFile("model.safetensors", "spaces/hamacojr/CAT-Seg-weights")
    small = dataclasses.replace(RELEASED["catseg-b"], files=(file,), width=width, parameters=1)
    monkeypatch.setitem(RELEASED, "catseg-b", small)
    with serving(files={path: weights.read_bytes()}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert command.main(["fetch", "catseg-b"]) == 0
    model = dinov3seg_jax.load("catseg-b", ["inference.image_size=64", "inference.window=48", "inference.stride=32"])
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert type(model).__name__ == "CatSegSegmenter"
    assert model.segment(picture, ["grass", "dog"]).labels.shape == (60, 80)


@pytest.mark.slow
def test_two_at_once(hub, tmp_path):
    hub.pause = 0.02
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    start = {"env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    (tmp_path / "models" / fetch.WORK).mkdir(parents=True)
    with (tmp_path / "models" / fetch.WORK / "tiny.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        both = [subprocess.Popen([sys.executable, "-c", TWO], **start) for _ in range(2)]
        waiting = [process.stderr.readline() for process in both]
    assert all("another process fetches 'tiny'; waiting for it" in line for line in waiting)
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out.strip() for out, _ in said] == [str(tmp_path / "models" / "tiny")] * 2
    assert len(hub.requests) == 1


def test_where_models_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("DINOV3SEG_MODELS", "~/mine")
    assert kept.models_folder() == expanded("~/mine")
    monkeypatch.delenv("DINOV3SEG_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert kept.models_folder() == tmp_path / "dinov3seg_jax"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert kept.models_folder().parts[-3:] == (".local", "share", "dinov3seg_jax")

    def homeless():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="no home to keep models in; set DINOV3SEG_MODELS"):
        kept.models_folder()


def test_the_table_is_printed(hub, capsys):
    fetch.fetch("tiny")
    capsys.readouterr()
    assert command.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line.split() for line in lines if line.startswith("tipsv2-l14 "))
    assert " ".join(row) == "tipsv2-l14 zero-shot segmentation 1.95 GB 1.95 GB 24.7 open no Apache-2.0"
    assert [line.split()[0] for line in lines if " yes " in line] == ["tiny"]
    assert "gated" in next(line for line in lines if line.startswith("dinotxt"))
    assert command.main(["models", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["catseg-l"]["scores"]["PC-459"] == 23.8
    assert known["tiny"]["folder"].endswith("models/tiny")
    assert known["catseg-l"]["folder"] is None


def test_every_row_can_be_fetched_or_asked_for():
    rows = {name: row for name, row in RELEASED.items() if name != "tiny"}
    for row in rows.values():
        assert row.page.startswith("https://")
        assert row.use in ("predict", "init_from")
        assert set(row.scores) <= set(released.BENCHMARKS)
        for file in row.files:
            assert not file.sha256 or len(file.sha256) == 64
            assert not file.address or file.sha256 in file.address
    missing = {row.kind for row in rows.values()} - KINDS.keys()
    assert not missing
