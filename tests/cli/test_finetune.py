"""The commands of docs/finetune.md, on a few pictures with COCO's annotations and a model that compiles in seconds."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.cli import main as command
from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.data.held_out import open_evaluation, open_training
from dinov3seg_jax.store.run import RunFolder
from dinov3seg_jax.training.loop import train
from tests.training.test_loop import at

PAGE = Path("docs/finetune.md").read_text(encoding="utf-8")
SIDE = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a run."""
    inference = InferenceConfig(image_size=SIDE, window=32, stride=16)
    return train(at(tmp_path_factory.mktemp("model") / "run", steps=1, inference=inference))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten pictures with a bright square each, in COCO's format, as an annotation tool writes it."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (root / "images").mkdir()
    images, instances = [], []
    for number in range(10):
        left, top, side = rng.integers(0, 20), rng.integers(0, 20), int(rng.integers(12, 24))
        pixels = rng.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
        pixels[top : top + side, left : left + side] += 150
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        x, y = float(left), float(top)
        outline = [x, y, x + side, y, x + side, y + side, x, y + side]
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        instances.append({"id": number, "image_id": number, "category_id": 7, "segmentation": [outline]})
    content = {"images": images, "annotations": instances, "categories": [{"id": 7, "name": "bright square"}]}
    (root / "result.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_the_page_from_annotations_to_a_map(model, pictures, tmp_path, capsys):
    run = tmp_path / "finetuned"
    data = [f"--config.data.train.root={pictures}", "--config.data.train.name=coco_json"]
    data += ["--config.data.train.background=ground"]
    words = ["--config.train.steps=4", "--config.train.eval_every=2", "--config.train.batch_size=2"]
    words += ["--config.train.log_every=1", f"--config.workdir={run}", "--config.data.validation=0.3"]
    assert command.main(["train", "--config", f"finetune:{model}", *data, *words]) == 0
    folder = RunFolder(run)
    assert folder.config.train.finetune == "lora"
    assert folder.config.model == RunFolder(model).config.model
    trained, scored = (
        {dataset.source[index]["name"] for index in range(len(dataset.source))}
        for dataset in (open_training(folder.config.data), open_evaluation(folder.config.data))
    )
    assert len(trained | scored) == 10 == len(trained) + len(scored)
    capsys.readouterr()

    again = ["--config.data.validation=0.3", "--checkpoint", str(run), "--step", "best"]
    assert command.main(["eval", "--config", f"finetune:{run}", *data, *again]) == 0
    assert re.search(r"miou +\d", capsys.readouterr().out)
    (report,) = run.rglob("metrics.json")
    metrics = json.loads(report.read_text())
    assert metrics["images"] == len(scored)

    picture, names = pictures / "images/0.png", "bright square, ground"
    asked = ["--checkpoint", str(run), "--step", "best", "--image", str(picture), "--classes", names]
    assert command.main(["predict", *asked, "--out", str(tmp_path / "out")]) == 0
    assert any((tmp_path / "out").rglob("*.png"))


def test_the_page_names_options_that_there_are():
    config = dataclasses.asdict(Config())
    named = set(re.findall(r"(?:--config\.|`)((?:data|train|model|inference)(?:\.\w+)+)", PAGE))
    assert len(named) > 10
    for option in named:
        section = config
        for word in option.split("."):
            assert word in section, option
            section = section[word]
