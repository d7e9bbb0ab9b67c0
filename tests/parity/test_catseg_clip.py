"""CLIP as CAT-Seg has it: both towers, and the dense features of the replaced last block."""

import functools

import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import ModelConfig, TextConfig, VisionConfig
from dinov3seg_jax.convert.tables import clip as table
from dinov3seg_jax.convert.tables.rules import apply_rules
from dinov3seg_jax.models.functions import resize_cubic
from dinov3seg_jax.models.graph import any_values, describe
from dinov3seg_jax.models.towers import TwoTowers
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_last, described, filled, run, section

TOLERANCE = 2e-5


@functools.cache
def load(path):
    return arrays(path)


def model_config(case) -> ModelConfig:
    return ModelConfig(
        towers="clip",
        vision=VisionConfig(
            dim=case["vision_width"],
            depth=case["vision_layers"],
            heads=case["vision_heads"],
            patch_size=case["patch_size"],
            taps=tuple(case["taps"]),
            grid=case["input_resolution"] // case["patch_size"],
            outputs=case["embed_dim"],
        ),
        text=TextConfig(
            dim=case["text_width"],
            depth=case["text_layers"],
            heads=case["text_heads"],
            vocab_size=case["vocab_size"],
            context_length=case["context_length"],
        ),
    )


CASES = [
    pytest.param(path, name, id=f"{path.stem}-{name}")
    for path in fixtures("catseg_clip")
    for name in described(load(path), "config")
]


@functools.cache
def towers(path, name):
    values, case = section(load(path), f"{name}/"), described(load(path), "config")[name]
    return filled(lambda: TwoTowers(model_config(case), rngs=nnx.Rngs(0)), section(values, "w/"), table.RULES)


def tokens_of(cls, grid):
    """One row, the class token first, as the file has it."""
    return np.concatenate([np.asarray(cls)[:, None], np.asarray(grid).reshape(len(grid), -1, grid.shape[-1])], axis=1)


@pytest.mark.parametrize(("path", "name"), CASES)
def test_vision(path, name, compare):
    values, case = section(load(path), f"{name}/"), described(load(path), "config")[name]
    model = towers(path, name)
    for size in case["runs"]:
        given = section(values, f"{size}/")
        found = run(model, lambda model, images: model.vision(images), channels_last(given["in/image"]))
        dense = given["out/dense"]
        h, w = found.patches.shape[1:3]
        compare(f"{size} dense", found.patches.reshape(len(dense), h * w, -1), dense[:, 1:], TOLERANCE, relative=True)
        if "out/pooled" in given:
            compare(f"{size} pooled", found.cls, given["out/pooled"], TOLERANCE, relative=True)
        for tap, ours in zip(case["taps"], found.intermediate, strict=True):
            official = given[f"mid/block{tap}_out"][:, 1:]
            compare(f"{size} block {tap}", ours.reshape(official.shape), official, TOLERANCE, relative=True)
        if "mid/pos_embed_resized" in given:
            resized = resize_cubic(model.vision.positions[...][None], h, w)
            table_of = tokens_of(model.vision.cls_position[...][None], resized)[0]
            compare(f"{size} positions", table_of, given["mid/pos_embed_resized"], TOLERANCE, relative=True)


@pytest.mark.parametrize(("path", "name"), CASES)
def test_text(path, name, compare):
    values = section(load(path), f"{name}/text/")
    features = run(towers(path, name), lambda model, ids: model.text(ids), values["in/tokens"])
    unit = run(towers(path, name), TwoTowers.encode_text, values["in/tokens"])
    compare("features", features, values["out/features"], TOLERANCE, relative=True)
    compare("embedding", unit, values["out/embedding"], TOLERANCE, relative=True)


@pytest.mark.parametrize(("path", "name"), CASES)
def test_openai_layout(path, name):
    """Query, key and value in one tensor are the same weights."""
    values, case = section(load(path), f"{name}/"), described(load(path), "config")[name]
    split = section(values, "w/")
    fused = {key: value for key, value in split.items() if not key.endswith("_proj_weight")}
    for start in {key[: -len("q_proj_weight")] for key in split if key.endswith("q_proj_weight")}:
        fused[f"{start}in_proj_weight"] = np.concatenate([split[f"{start}{part}_proj_weight"] for part in "qkv"])
    for key, official in section(values, "openai/").items():
        np.testing.assert_array_equal(fused[key], official)
    expected = {key: leaf.shape for key, leaf in described_towers(case).items()}
    ours, of_openai = (apply_rules(state, table.RULES, expected) for state in (split, fused))
    for key, value in ours.items():
        np.testing.assert_array_equal(of_openai[key], value)


def described_towers(case):
    return describe(lambda: TwoTowers(model_config(case), rngs=any_values()))[1]
