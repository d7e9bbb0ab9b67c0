"""ONNX files score as the model does, without JAX; what does not agree with the model is not left."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.cli.export import main
from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.export import onnx as writer
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.store.run import RunFolder
from tests.tiny import MODEL

NAMES = ("red circle", "grass", "a dog")
CONFIG = Config(model=MODEL, inference=InferenceConfig(image_size=48, window=32, stride=16))
WORDS = ["--format", "onnx", "--checkpoint", "run"]

WITHOUT_JAX = """
import json, sys
sys.modules["jax"] = sys.modules["flax"] = None
import numpy as np
import onnxruntime
folder, given, found = sys.argv[1:]
session = onnxruntime.InferenceSession(f"{folder}/48x48.onnx")
names = json.loads(session.get_modelmeta().custom_metadata_map["names"])
assert names == ["red circle", "grass", "a dog"]
text = np.load(f"{folder}/text.npy")
scores = [session.run(["scores"], {"images": image[None], "text": text})[0][0] for image in np.load(given)]
np.save(found, scores)
"""


@pytest.fixture(scope="module")
def parameters():
    drawn = initialize(MODEL, jax.random.key(0))
    return drawn | {"decoder/head/kernel": 20 * drawn["decoder/head/kernel"]}


@pytest.fixture(autouse=True)
def _checkpoint(monkeypatch, parameters):
    """Every folder is that of a run of this model."""
    monkeypatch.setattr(RunFolder, "config", CONFIG)
    monkeypatch.setattr(RunFolder, "arrays", lambda folder: parameters)


def classes(names=NAMES):
    return ["--classes", ", ".join(names)]


@pytest.mark.slow
def test_a_file_scores_as_the_model_where_there_is_no_jax(tmp_path, parameters, capsys):
    pytest.importorskip("jax2onnx")
    out = tmp_path / "out"
    assert main([*WORDS, "--out", str(out), *classes()]) == 0
    assert "scores differ from the model's by" in capsys.readouterr().out
    described = json.loads((out / "onnx.json").read_text())
    assert 0 < described["largest_difference"] < 1e-4
    pictures = np.random.default_rng(3).integers(0, 256, (2, 48, 48, 3), np.uint8)
    np.save(tmp_path / "given.npy", pictures)
    command = [sys.executable, "-c", WITHOUT_JAX, out, tmp_path / "given.npy", tmp_path / "found.npy"]
    subprocess.run(command, check=True)
    model = Segmenter(CONFIG, parameters)
    (chunk,) = model.chunks(model.parameters, pictures, np.load(out / "text.npy"))
    expected = np.asarray(chunk.scores)[:, np.asarray(chunk.class_mask)]
    assert expected.std() > 0.01
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-4)


def small(method):
    """A model in the place of the real one, which is converted in a second."""

    def scoring(model):
        def score(images, text):
            pixels = images.astype(jnp.float32) / 255
            resized = jax.image.resize(pixels, (1, 96, 96, 3), method, antialias=False)
            return jax.nn.sigmoid(jnp.einsum("bhwc,tc->bthw", resized, text[:, :3]))

        return score

    return scoring


def test_what_does_not_agree_is_refused(tmp_path, monkeypatch):
    """As a cubic resize, which jax2onnx writes with another kernel."""
    pytest.importorskip("jax2onnx")
    monkeypatch.setattr(writer, "scoring", small("linear"))
    assert writer.export_onnx("run", tmp_path / "right", names=NAMES) < 1e-6
    assert (tmp_path / "right" / "48x48.onnx").exists()
    monkeypatch.setattr(writer, "scoring", small("cubic"))
    with pytest.raises(
        UserError, match="the ONNX file for pictures of 48x48 is wrong: a score is 0.* from the model's"
    ):
        writer.export_onnx("run", tmp_path / "wrong", names=NAMES)
    assert not list(tmp_path.glob("*wrong*"))


def test_jax_is_as_it_was_after_an_export(tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    monkeypatch.setattr(writer, "scoring", small("linear"))
    for size in ("one", "two"):
        writer.export_onnx("run", tmp_path / size, names=NAMES)
    assert float(jax.jit(lambda x: jnp.ones(3).sum() + x)(1.0)) == 4


def test_what_cannot_be_converted_is_one_sentence(tmp_path, monkeypatch):
    def convert(*_, **__):
        raise NotImplementedError("no plugin\nfor it")

    monkeypatch.setattr(writer, "_import_libraries", lambda: (convert, None, None))
    monkeypatch.setattr(writer, "scoring", small("linear"))
    sentence = (
        r"cannot write this model at 48x48 \(NotImplementedError: no plugin for it\); export it with --format jax"
    )
    with pytest.raises(UserError, match=sentence):
        writer.export_onnx("run", tmp_path / "out", names=NAMES)
    assert not (tmp_path / "out").exists()


def test_missing_libraries_and_names_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="takes a fixed number of classes; say which with --classes"):
        main([*WORDS, "--out", str(tmp_path / "out")])
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match="install the extra 'onnx', then: pip install --no-deps jax2onnx==0.17.1"):
        main([*WORDS, "--out", str(tmp_path / "out"), *classes()])


def test_probes_fill_any_size():
    for size in ((48, 48), (16, 112)):
        assert [image.shape for image in writer.probes(size)] == [(1, *size, 3)] * 3
        assert all(image.dtype == np.uint8 and image.std() > 10 for image in writer.probes(size))
