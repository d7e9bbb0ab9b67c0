"""`dinov3seg app`: what is wrong with a command line is said before anything starts."""

import contextlib
import signal

import pytest

from dinov3seg_jax.app import server
from dinov3seg_jax.app.limits import Limits
from dinov3seg_jax.cli import app
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.run import write_config
from tests.tiny import MODEL


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINOV3SEG_MODELS", str(tmp_path / "kept"))
    monkeypatch.delenv(app.PASSWORD_VARIABLE, raising=False)
    write_config(tmp_path / "run", Config(model=MODEL))


ENDS = {"warmed": "run", "ends_by": signal.SIGTERM}


class Ended(Exception):
    """As by Ctrl-C."""


@pytest.fixture
def started(monkeypatch):
    """What the server is started with."""
    seen = {}

    @contextlib.contextmanager
    def running(models, limits, address):
        seen.update(models=models.names, limits=limits, address=address)
        yield "http://here/"

    def sleep(seconds):
        raise Ended

    monkeypatch.setattr(server, "running", running)
    monkeypatch.setattr("dinov3seg_jax.app.models.Models.warm", lambda self, name: seen.update(warmed=name))
    monkeypatch.setattr("dinov3seg_jax.cache.programs.keep_programs", lambda: None)
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("signal.signal", lambda number, handler: seen.update(ends_by=number))
    return seen


def test_the_defaults_let_nobody_else_in(started, capsys):
    with pytest.raises(Ended):
        app.main(["--checkpoint", "run"])
    assert started == {"models": ["run"], "limits": Limits(), "address": server.Address()} | ENDS
    assert started["address"].host == "127.0.0.1"
    assert capsys.readouterr() == ("open http://here/ in a browser; Ctrl-C ends the app\n", "")


def test_every_option_arrives(started, monkeypatch, tmp_path, capsys):
    (tmp_path / "users").write_text("ann:a:b\n\nbob:c\n")
    options = "--host 0.0.0.0 --port 99 --auth @users --max_upload 5 --max_pixels 6 --queue 7"
    with pytest.raises(Ended):
        app.main(["--checkpoint", "run", *options.split()])
    assert started["address"] == server.Address("0.0.0.0", 99, (("ann", "a:b"), ("bob", "c")))
    assert started["limits"] == Limits(upload=5, pixels=6, queue=7)
    assert capsys.readouterr().err == ""


def test_an_open_door_is_noted(started, capsys):
    with pytest.raises(Ended):
        app.main(["--checkpoint", "run", "--host", "0.0.0.0"])
    assert "note: whoever reaches 0.0.0.0:7860 can use the app; --auth asks" in capsys.readouterr().err


def test_a_password_in_the_environment(monkeypatch):
    assert app.passwords(None) == ()
    monkeypatch.setenv(app.PASSWORD_VARIABLE, "ann:secret")
    assert app.passwords(None) == (("ann", "secret"),)
    assert app.passwords("bob:word") == (("bob", "word"),)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--auth", "ann"], "--auth holds a line that is not USER:PASSWORD"),
        (["--auth", ":secret"], "--auth holds a line that is not USER:PASSWORD"),
        (["--auth", ""], "--auth holds a line that is not USER:PASSWORD"),
        (["--auth", "@absent"], r"the passwords in absent cannot be read \(No such file"),
        (["--auth", "@empty"], "empty holds no password; write USER:PASSWORD, one a line"),
        (["--port", "65536"], "--port is 65536, and the largest is 65535"),
        (["--config.seed=1"], "--config.seed=1 changes nothing here"),
        (["--checkpoint", "absent"], "'absent' does not exist"),
    ],
)
def test_mistakes(started, tmp_path, words, message):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match=message):
        app.main(["--checkpoint", "run", *words])
    assert not started
