"""Names and masks that cannot be scored are refused before the model is read."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import Config, DataConfig, DatasetConfig, InferenceConfig, LinearConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import evaluate as module
from dinov3seg_jax.evaluation.evaluate import evaluate, evaluate_benchmarks
from dinov3seg_jax.inference.load import OpenModel
from dinov3seg_jax.store.run import RunFolder, write_config
from tests.evaluation.stub import Reading
from tests.tiny import MODEL


@pytest.fixture
def run(tmp_path):
    """The folder of a run without a step."""
    write_config(tmp_path / "run", Config(model=MODEL))
    return tmp_path / "run"


def config(root, names=("cat", "dog"), values=(1, 2, 0), **options):
    for part in ("images", "masks"):
        (root / part / "val").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (len(values), 1)).save(root / "images/val/a.png")
    Image.fromarray(np.array([values], np.uint8)).save(root / "masks/val/a.png")
    (root / "classes.json").write_text(json.dumps([{"id": i + 1, "name": name} for i, name in enumerate(names)]))
    return Config(data=DataConfig(eval=DatasetConfig(name="folder", split="val", root=str(root))), **options)


NO_STEP = "holds no complete checkpoint"  # is said when the model is read


@pytest.mark.parametrize("zero_shot", [False, True])
@pytest.mark.parametrize(("names", "part"), [(("Grass", "grass"), "grass"), (("cat", "very " * 100 + "big"), "tokens")])
def test_names_that_the_model_would_refuse(tmp_path, run, names, part, zero_shot):
    with pytest.raises(UserError, match=f"^in {tmp_path}/classes.json, .*{part}"):
        evaluate(config(tmp_path, names), run, zero_shot)


def test_names_are_checked_in_the_templates_that_are_asked_for(tmp_path, run):
    templates = InferenceConfig(templates=("{}" + " and so on" * 40,))
    asked = config(tmp_path, inference=templates)
    with pytest.raises(UserError, match="tokens"):
        evaluate(asked, run)
    with pytest.raises(UserError, match=NO_STEP):
        evaluate(asked, run, zero_shot=True)


def test_a_linear_head_is_not_asked_for_names(tmp_path, run):
    model = MODEL.__class__(**vars(MODEL) | {"linear": LinearConfig(classes=2)})
    write_config(run, Config(model=model))
    with pytest.raises(UserError, match=NO_STEP):
        evaluate(config(tmp_path, ("Grass", "grass")), run)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ((0, 255, 0), "none of the masks .* labels a single pixel"),
        ((1, 2, 9), "holds the value 9, which is no class"),
        ((1, 0, 0), NO_STEP),  # a class that does not occur is no mistake of an evaluation
    ],
)
def test_masks_that_cannot_be_scored(tmp_path, run, capsys, values, part):
    with pytest.raises(UserError, match=part):
        evaluate(config(tmp_path, values=values), run)
    assert capsys.readouterr().err == ""
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_a_benchmark_without_a_label(tmp_path, run):
    top = tmp_path / "ADEChallengeData2016"
    for part, picture in (("images", Image.new("RGB", (3, 1))), ("annotations", Image.new("L", (3, 1)))):
        (top / part / "validation").mkdir(parents=True)
        picture.save(top / part / "validation/a.png")
    asked = Config(data=DataConfig(eval=DatasetConfig(split="eval", root=str(tmp_path))), benchmarks=("ade20k_150",))
    with pytest.raises(UserError, match="none of the masks .* labels a single pixel: .* take the official files"):
        evaluate_benchmarks(asked, run)
    assert module.report_folder(run, False) == run
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_a_runs_towers_alone_are_scored_on_the_names_it_trained_on_and_on_others(run, monkeypatch):
    asked = Config(model=MODEL, data=DataConfig(eval=DatasetConfig(split="eval", size=3, image_size=32)))
    opened = OpenModel(RunFolder(run), "zero_shot", asked, {})
    monkeypatch.setattr(module, "open_to_score", lambda *_: module.Model(Reading(), asked, opened))
    assert {"seen_miou", "unseen_miou", "boundary_iou"} <= evaluate(asked, run, zero_shot=True).keys()
