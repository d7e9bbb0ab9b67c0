"""The server: who may come in, how many may wait, and that nothing of it is left."""

import json
import os
import subprocess
import sys
import threading

import httpx2 as httpx
import pytest

from dinov3seg_jax.app import server
from dinov3seg_jax.app.limits import Limits
from dinov3seg_jax.app.models import Models
from dinov3seg_jax.app.server import Address, delete_old, running
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.run import write_config
from tests.app.conftest import NAMES, free_port
from tests.tiny import MODEL


@pytest.fixture
def models(tmp_path, model, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_config(tmp_path / "tiny", Config(model=MODEL))
    found = Models({"tiny": tmp_path / "tiny"})
    found._loaded["tiny"] = model
    return found


def test_without_gradio(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with (
        pytest.raises(UserError, match=r"the app needs gradio; install the extra 'app', as in pip install"),
        running(models, Limits(), Address()),
    ):
        pass


def test_a_folder_that_is_gone_while_old_files_are_deleted(tmp_path, monkeypatch):
    """As when a page is closed and Gradio clears up at the same moment: the others are still deleted."""

    def scandir(path):
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return kept(path)

    kept = os.scandir
    for name in ("gone", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    monkeypatch.setattr(os, "scandir", scandir)
    delete_old(tmp_path, -1)
    assert not (tmp_path / "there").exists()


def test_old_files_are_deleted(tmp_path):
    (tmp_path / "old" / "deep").mkdir(parents=True)
    (tmp_path / "old" / "deep" / "a.png").write_text("a")
    delete_old(tmp_path, 600)
    assert (tmp_path / "old" / "deep" / "a.png").exists()
    delete_old(tmp_path, -1)
    assert not list(tmp_path.iterdir())


def test_what_killed_apps_left_is_deleted(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    names = [f"dinov3seg-app-{ended.stdout.strip()}-abc", f"dinov3seg-app-{os.getppid()}-abc", "dinov3seg-app-x-y"]
    for name in names:
        (tmp_path / name / "deep").mkdir(parents=True)
    server.delete_left_over(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


@pytest.mark.slow
def test_a_password_is_asked_for(models, tmp_path, picture):
    pytest.importorskip("gradio")
    address = Address(port=free_port(), auth=(("ann", "secret"), ("bob", "word")))
    with running(models, Limits(), address) as url, httpx.Client(base_url=url) as http:
        files = {"files": ("a.png", picture.read_bytes())}
        closed = (
            http.post("gradio_api/upload", files=files),
            http.post("gradio_api/call/models", json={"data": []}),
            http.get("config"),
            http.post("login", data={"username": "ann", "password": "word"}),
        )
        assert all(answer.status_code in (400, 401) for answer in closed)
        assert http.post("login", data={"username": "bob", "password": "word"}).status_code == 200
        assert http.post("gradio_api/upload", files=files).status_code == 200
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


@pytest.mark.slow
def test_a_port_that_is_taken(models, app):
    port = int(app.url.rstrip("/").rsplit(":", 1)[1])
    with (
        pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} cannot be used .*; choose another --host or --port"),
        running(models, Limits(), Address(port=port)),
    ):
        pass


@pytest.mark.slow
def test_who_comes_when_the_queue_is_full_is_told_so(models, picture, monkeypatch):
    pytest.importorskip("gradio")
    gate = threading.Event()
    monkeypatch.setattr("dinov3seg_jax.app.asking.read_pixels", lambda path: gate.wait(60) and 1 / 0)
    with running(models, Limits(queue=2), Address(port=free_port())) as url, httpx.Client(base_url=url) as http:
        path = http.post("gradio_api/upload", files={"files": ("a.png", picture.read_bytes())}).json()[0]
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, NAMES]
        data += ["", "mean", 0, "", "", "", ["json"], "", 0, 0.5, {}]
        begun = [http.post("gradio_api/call/segment", json={"data": data}) for _ in range(8)]
        refused = [answer.text for answer in begun if answer.status_code != 200]
        gate.set()
    assert 3 <= len(refused) <= 6
    assert all("queue" in json.loads(text)["detail"].lower() for text in refused)


@pytest.mark.slow
def test_what_is_done_by_default_and_should_not_be(app):
    config = httpx.get(f"{app.url}config").json()
    assert config["analytics_enabled"] is False
    assert config.get("share_url") in (None, "")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert httpx.get(f"{app.url}monitoring").status_code in (403, 404)
    assert app.url.startswith("http://127.0.0.1:")
    assert server.ENVIRONMENT.items() <= os.environ.items()
