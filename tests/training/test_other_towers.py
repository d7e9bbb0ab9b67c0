"""The paper's head on the towers of CLIP and TIPSv2, from nothing, on painted scenes."""

import base64
import dataclasses
import json

import numpy as np
import pytest

import dinov3seg_jax
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models import presets
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.training.program import refuse_misfits
from dinov3seg_jax.training.start import first_parameters, with_tokenizer
from tests.convert.files import FIXTURES

CHANCE = 100 / 46  # percent: mIoU of a blind guess among 46 classes, at most


def nano(towers: str, tokenizer: str, vocabulary: int, workdir: str) -> Config:
    config = load_config("quickstart", [f"workdir={workdir}", "data.eval.size=24"])
    vision = dataclasses.replace(presets.NANO.vision, grid=6, head_blocks=0, storage_tokens=0)
    text = dataclasses.replace(presets.NANO.text, dim=vision.dim, vocab_size=vocabulary, context_length=64)
    model = dataclasses.replace(config.model, towers=towers, tokenizer=tokenizer, vision=vision, text=text)
    train = dataclasses.replace(config.train, alignment_steps=600, steps=100, log_every=10)
    return dataclasses.replace(config, model=model, train=train)


@pytest.mark.slow
@pytest.mark.parametrize("towers", ["clip", "tips"])
def test_trains_on_painted_scenes(tmp_path, towers):
    tokenizer, vocabulary = "", 49408
    if towers == "tips":
        file = json.loads((FIXTURES / "tips_tokenizer.json").read_text())
        path = tmp_path / "tokenizer.model"
        path.write_bytes(base64.b64decode(file["model_base64"]))
        tokenizer, vocabulary = str(path), 720
    run = tmp_path / "run"
    config = nano(towers, tokenizer, vocabulary, str(run))
    dinov3seg_jax.train(config)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    scores = dinov3seg_jax.evaluate(config, run)
    assert (
        scores["unseen_miou"] > 1.5 * CHANCE
    )  # measured: clip 28.5, tips, whose tokenizer was made for other words, 6.1
    assert scores["seen_miou"] > 5 * CHANCE  # 45.3 and 37.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.towers=tips"], "share one space"),
        (["model.vision.taps=(1,)"], "name two blocks"),
        (["model.vision.taps=(1,9)"], "name two blocks"),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        refuse_misfits(load_config("quickstart", options))


def test_the_tokenizer_is_found_beside_the_first_weights(tmp_path):
    run, weights = tmp_path / "run", tmp_path / "weights"
    weights.mkdir()
    (weights / "tokenizer.model").write_bytes(b"a tokenizer")
    config = load_config("quickstart", [f"workdir={run}", "model.towers=tips", f"init_from={weights}"])
    write_config(weights, config)
    assert with_tokenizer(config).model.tokenizer == str(weights / "tokenizer.model")
    run.mkdir()
    (run / "tokenizer.model").write_bytes(b"another")
    assert with_tokenizer(config).model.tokenizer == str(run / "tokenizer.model")
    told = dataclasses.replace(config.model, tokenizer=str(weights / "tokenizer.model"))
    with pytest.raises(UserError, match="is not the tokenizer that the run"):
        with_tokenizer(dataclasses.replace(config, model=told))


def test_a_run_with_other_towers_is_no_beginning(tmp_path):
    clip = nano("clip", "", 49408, str(tmp_path / "clip"))
    write_config(tmp_path / "clip", clip)
    ours = load_config("quickstart", [f"init_from={tmp_path / 'clip'}"])
    with pytest.raises(UserError, match="model.towers=clip, not dinotxt"):
        first_parameters(ours, {})
