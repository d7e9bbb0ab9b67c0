"""Which models are offered, and loaded when they are asked for."""

import time

import pytest

from dinov3seg_jax.app import models as module
from dinov3seg_jax.app.models import Models, find_models
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.run import write_config
from tests.tiny import MODEL


def run_in(folder, step=True):
    write_config(folder, Config(model=MODEL))
    if step:
        (folder / "checkpoints" / "1").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def no_models(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV3SEG_MODELS", str(tmp_path / "kept"))


def test_named_ones_come_first_and_only_once(tmp_path):
    runs = tmp_path / "runs"
    named = run_in(tmp_path / "elsewhere" / "a")
    for name in ("b", "a"):
        run_in(runs / name)
    run_in(runs / "without_a_step", step=False)
    (runs / "notes").mkdir()
    found = find_models([named, runs / "b"], runs)
    assert found == {"a": named, "b": runs / "b", "a (2)": runs / "a"}


def test_fetched_models_are_offered_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_kept", lambda name: name.startswith("tipsv2"))
    found = find_models([], tmp_path)
    assert found
    assert all(name == path and name.startswith("tipsv2") for name, path in found.items())


@pytest.mark.parametrize(
    ("named", "message"),
    [([], "there is no model here; name one with --checkpoint"), (["absent"], "'.*absent' does not exist")],
)
def test_no_model(tmp_path, named, message):
    with pytest.raises(UserError, match=message):
        find_models([tmp_path / name for name in named], tmp_path)


def test_a_model_is_loaded_once_and_the_oldest_goes(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("dinov3seg_jax.inference.load.load", lambda path: loaded.append(path.name) or path.name)
    models = Models({name: run_in(tmp_path / name) for name in ("a", "b", "c")})
    for name in ("a", "b", "a", "c", "a", "b"):
        assert models.open(name) == name
    assert loaded == ["a", "b", "c", "b"]
    assert models.is_ready("a")
    assert not models.is_ready("c")


def test_an_unknown_model(tmp_path):
    with pytest.raises(UserError, match=r"there is no model 'quikstart' here \(did you mean 'quickstart'\?\); choose"):
        Models({"quickstart": tmp_path}).open("quikstart")


class Stub:
    """Counts what it is warmed with."""

    def __init__(self, accepts=True):
        self.seen, self.accepts = [], accepts

    def check_names(self, names):
        if not self.accepts:
            raise UserError("a head of its own names")
        return tuple(names)

    def segment_arrays(self, images, names):
        self.seen += [image.shape for image in images]


@pytest.mark.parametrize("accepts", [True, False])
def test_a_warm_model_has_compiled_both_shapes(tmp_path, monkeypatch, capsys, accepts):
    stub = Stub(accepts)
    monkeypatch.setattr("dinov3seg_jax.inference.load.load", lambda path: stub)
    models = Models({"a": run_in(tmp_path / "a")})
    models.warm("a")
    wait(lambda: models.is_ready("a"))
    assert stub.seen == ([(480, 640, 3), (640, 480, 3)] if accepts else [])
    assert capsys.readouterr().out.startswith("a is ready, after ")
    assert not models.broken


def test_one_that_cannot_be_loaded_says_why(tmp_path, capsys):
    models = Models({"a": run_in(tmp_path / "a")})  # whose step is empty
    models.warm("a")
    wait(lambda: models.broken)
    assert "a" in models.broken["a"]
    assert capsys.readouterr().err == f"error: {models.broken['a']}\n"


def wait(done):
    for _ in range(600):
        if done():
            time.sleep(0.05)
            return
        time.sleep(0.05)
    raise AssertionError("it takes too long")
