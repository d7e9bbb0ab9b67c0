"""An exported model scores as the model does, and needs JAX and NumPy alone."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from dinov3seg_jax.cli.export import main
from dinov3seg_jax.config import Config, InferenceConfig, LinearConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.export.scorer import load
from dinov3seg_jax.export.writer import write_new_folder
from dinov3seg_jax.inference.device.precision import narrow
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.models.parameters import parameter_bytes
from dinov3seg_jax.models.quantized import SCALE
from dinov3seg_jax.store.run import RunFolder
from tests.closeness import SCORES
from tests.converted import write_folder
from tests.tiny import MODEL

NAMES = ("red circle", "grass", "a dog")
INFERENCE = InferenceConfig(image_size=48, window=32, stride=16)
CONFIG = Config(model=MODEL, inference=INFERENCE)

# The programs' own files and the loader, where nothing of the model can be imported.
ELSEWHERE = """
import sys
for name in ("flax", "optax", "orbax", "pydantic", "jaxtyping", "PIL", "dinov3seg_jax.models", "dinov3seg_jax.config"):
    sys.modules[name] = None
import numpy as np
from dinov3seg_jax.export.scorer import load
folder, given, found = sys.argv[1:]
given, scorer = np.load(given), load(folder)
assert scorer.names == ("red circle", "grass", "a dog")
np.savez(
    found,
    one=scorer(given["images"][:1]),
    others=scorer(given["images"], given["text"]),
    masked=scorer(given["images"], given["text"], np.arange(5) < 3),
)
"""

# What docs/export.md shows.
BY_HAND = """
import sys
import jax, jax.export
import numpy as np
sys.modules["dinov3seg_jax"] = sys.modules["flax"] = None
folder, given, found = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(f"{folder}/48x48.bin", "rb").read()))
weights = dict(np.load(f"{folder}/weights.npz"))
text = np.load(f"{folder}/text.npy")
images = np.load(given)["images"]
np.savez(found, three=jax.jit(program.call)(weights, images, text, np.ones(len(text), bool)))
"""


@pytest.fixture(scope="module")
def parameters():
    drawn = initialize(MODEL, jax.random.key(0))
    return drawn | {"decoder/head/kernel": 20 * drawn["decoder/head/kernel"]}


@pytest.fixture(scope="module", autouse=True)
def _checkpoint(parameters):
    """Every folder is that of a run of this model."""
    elsewhere = dataclasses.replace(CONFIG.model, attention="splash")  # what a TPU alone has
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "config", dataclasses.replace(CONFIG, model=elsewhere))
        patch.setattr(RunFolder, "arrays", lambda folder: parameters)
        yield


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "model"
    main(["--checkpoint", "run", "--out", str(out), "--classes", ", ".join(NAMES)])
    return out


@pytest.fixture(scope="module")
def model(parameters):
    return Segmenter(CONFIG, parameters)


def scores_of(model, pictures, text):
    (chunk,) = model.chunks(model.parameters, pictures, text)
    return np.asarray(chunk.scores)[:, np.asarray(chunk.class_mask)]


def run_elsewhere(program, folder, pictures, text, tmp_path):
    np.savez(tmp_path / "given.npz", images=pictures, text=text)
    command = [sys.executable, "-c", program, folder, tmp_path / "given.npz", tmp_path / "found.npz"]
    subprocess.run(command, check=True)
    return np.load(tmp_path / "found.npz")


@pytest.mark.slow
def test_it_agrees_with_the_model_where_the_models_own_code_cannot_be_imported(folder, model, pictures, tmp_path):
    text = np.random.default_rng(1).standard_normal((5, 64), np.float32)
    found = run_elsewhere(ELSEWHERE, folder, pictures, text, tmp_path)
    expected = {
        "one": scores_of(model, pictures, model.embed(NAMES))[:1],
        "others": scores_of(model, pictures, text),
        "masked": scores_of(model, pictures, text[:3]),
    }
    for name, scores in expected.items():
        assert scores.std() > 0.01
        np.testing.assert_allclose(found[name][:, : scores.shape[1]], scores, atol=SCORES, err_msg=name)


def test_the_files_can_be_read_by_hand(folder, model, pictures, tmp_path):
    found = run_elsewhere(BY_HAND, folder, pictures, np.zeros(0), tmp_path)["three"]
    np.testing.assert_allclose(found, scores_of(model, pictures, model.embed(NAMES)), atol=SCORES)


def rounded(parameters, weights):
    """The float32 weights that narrow ones stand for."""
    narrowed = narrow(parameters, weights)
    return {
        name: value.astype(np.float32) * narrowed.get(name + SCALE, np.float32(1))
        for name, value in narrowed.items()
        if not name.endswith(SCALE)
    }


@pytest.mark.parametrize(
    ("weights", "size", "sides"),
    [("int8", "48", (48, 48)), pytest.param("bfloat16", "32x48", (32, 48), marks=pytest.mark.slow)],
)
def test_narrow_weights_stay_narrow(model, parameters, pictures, tmp_path, weights, size, sides):
    arguments = ["--sizes", size, f"--config.inference.weights={weights}"]
    main(["--checkpoint", "run", "--out", str(tmp_path / "narrow"), *arguments])
    scorer = load(tmp_path / "narrow")
    assert scorer.sizes == [sides]
    with pytest.raises(UserError, match="no names were exported with this model; give the embeddings of yours"):
        scorer(pictures[:, : sides[0]])
    stored = {name: value for name, value in parameters.items() if not name.startswith("text/")}
    taken = (tmp_path / "narrow/weights.npz").stat().st_size
    assert taken < {"int8": 0.4, "bfloat16": 0.6}[weights] * parameter_bytes(stored) + 256 * 2 * len(stored)
    pictures, text = pictures[:, : sides[0]], np.random.default_rng(1).standard_normal((3, 64), np.float32)
    scores = scorer(pictures, text)
    expected, exact = (model.chunks(wide, pictures, text) for wide in (rounded(parameters, weights), parameters))
    np.testing.assert_allclose(scores, next(expected).scores[:, :3], atol=SCORES)
    assert abs(scores - next(exact).scores[:, :3]).max() > 1e-4, "it is not the wide model"


def test_all_platforms_share_a_program(folder):
    assert json.loads((folder / "export.json").read_text())["platforms"] == ["cpu", "cuda", "tpu"]
    program = jax.export.deserialize(bytearray((folder / "48x48.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert len(program.serialize()) < 2**20, "no weights inside"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "40"], "--sizes has 40x40; both sides have to be multiples of the 16 pixels"),
        (["--classes", "cat, cat"], "appears twice"),
        (["--classes", ""], "holds no class name"),
        (
            ["--config.inference.best_classes=2"],
            "scores every class it is given; add .*best_classes=0",
        ),
        (["--config.inference.weights=int4"], "'inference.weights' is 'int4'"),
        (["--config.inference.mode=slide"], "is for a linear head only"),
        (["--config.model.dtype=bfloat16"], "cannot be changed for a trained model"),
    ],
)
def test_what_cannot_be_exported(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["--checkpoint", "run", "--out", str(tmp_path / "out"), *arguments])
    assert not list(tmp_path.iterdir())


def test_converted_weights_have_no_head(tmp_path):
    write_folder(tmp_path / "towers", {"text/one": np.zeros(1, np.float32)}, "dinotxt", MODEL)
    with pytest.raises(UserError, match="towers' holds converted weights, and only runs are exported; name a run's"):
        main(["--checkpoint", str(tmp_path / "towers"), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"linear": LinearConfig(classes=3)}, "'run' holds a linear head, which takes no text; only a whole model can"),
        ({"late": dataclasses.replace(MODEL.late, pad_classes=4)}, "list has a fixed length; say which .* --classes"),
    ],
)
def test_models_that_cannot_be_exported(tmp_path, monkeypatch, part, message):
    model = dataclasses.replace(MODEL, **part)
    monkeypatch.setattr(RunFolder, "config", dataclasses.replace(CONFIG, model=model))
    with pytest.raises(UserError, match=message):
        main(["--checkpoint", "run", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_a_folder_where_none_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out' cannot be written \(.*\); choose another --out"):
        main(["--checkpoint", "run", "--out", str(tmp_path / "file" / "out")])


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(UserError, match="exists; choose another --out"):
        main(["--checkpoint", "run", "--out", str(tmp_path)])


def test_a_name_that_is_no_text(tmp_path):
    main(["--checkpoint", "run", "--out", str(tmp_path / "out"), "--classes", "cat\udcff"])
    assert load(tmp_path / "out").names == ("cat?",)


def test_what_killed_processes_left_is_cleared_away(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".out.export.{ended.pid}", ".out.export.1", ".out.export.notes", f".out.{ended.pid}"):
        (tmp_path / name / "deeper").mkdir(parents=True)
    write_new_folder(tmp_path / "out", lambda folder: None, "export.json")
    assert {path.name for path in tmp_path.iterdir()} == {
        ".out.export.1",
        ".out.export.notes",
        f".out.{ended.pid}",
        "out",
    }


def test_a_size_that_is_none(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--checkpoint", "run", "--out", str(tmp_path / "out"), "--sizes", "4x4x4"])
    assert "write 640 or 480x640" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (np.zeros((1, 48, 64, 3), np.uint8), None, r"give RGB bytes, uint8 \[b, 48, 48, 3\]"),
        (np.zeros((1, 48, 48, 3), np.float32), None, "the pictures are float32"),
        (np.zeros((48, 48, 3), np.uint8), None, r"the pictures are uint8 \[48, 48, 3\]"),
        (np.zeros((1, 48, 48, 3), np.uint8), np.zeros((2, 8)), "this model takes t rows of 64"),
    ],
)
def test_inputs_that_do_not_fit(folder, images, text, message):
    with pytest.raises(UserError, match=message):
        load(folder)(images, text)


def test_a_program_cannot_be_read_without_flatbuffers(folder, monkeypatch):
    def deserialize(program):
        raise ModuleNotFoundError("No module named 'flatbuffers'")

    monkeypatch.setattr(jax.export, "deserialize", deserialize)
    with pytest.raises(UserError, match="needs flatbuffers; pip install flatbuffers"):
        load(folder)


def test_folders_that_are_none_or_damaged(folder, tmp_path):
    with pytest.raises(UserError, match="is no exported model"):
        load(tmp_path)
    for file in ("export.json", "weights.npz", "48x48.bin"):
        damaged = tmp_path / file.replace(".", "_")
        damaged.mkdir()
        for part in folder.iterdir():
            content = part.read_bytes()
            (damaged / part.name).write_bytes(content[: len(content) // 2] if part.name == file else content)
        with pytest.raises(UserError, match="is damaged .*; export again"):
            load(damaged)
