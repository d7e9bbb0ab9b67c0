"""CLIP L/14 at full size and with random weights, beside `transformers`' CLIPModel."""

from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax.config_files import from_dict
from dinov3seg_jax.convert.recognise import recognise
from dinov3seg_jax.convert.sources import Source, Tensor
from dinov3seg_jax.convert.tables.rules import apply_rules
from dinov3seg_jax.models.graph import any_values, bind, describe
from dinov3seg_jax.models.towers import TwoTowers
from tests.convert.files import LAYOUTS, drawn
from tests.parity.official import channels_last, run

pytestmark = pytest.mark.slow

LAYOUT = LAYOUTS["clip_vitl14_336"]
TOLERANCE = 1e-4
PLACES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "logit_scale": "logit_scale",
}
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def value(key: str) -> np.ndarray:
    """Values at which activations stay as large as those of a trained model."""
    noise = drawn(key, LAYOUT[key])
    if key.endswith("bias"):
        return 0.1 * noise
    if ".ln_" in f".{key}":
        return 1 + 0.1 * noise
    inputs = noise.shape[0] if key.endswith("proj") else int(np.prod(noise.shape[1:]))
    embedding = noise.ndim < 2 or "embedding" in key
    return noise * np.float32(1 if embedding else inputs**-0.5)


def renamed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenAI's keys as those of `transformers`, query, key and value apart, projections turned."""
    found = {}
    for key, array in state.items():
        start = next(start for start in PLACES if key == start or key.startswith(f"{start}."))
        theirs = PLACES[start] + key.removeprefix(start)
        for inside, name in INSIDE.items():
            theirs = theirs.replace(f".{inside}.", f".{name}.")
        if ".attn.in_proj_" in theirs:
            for part, third in zip("qkv", np.split(array, 3), strict=True):
                found[theirs.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = third
        else:
            found[theirs] = array.T if key in ("visual.proj", "text_projection") else array
    return found


def their_outputs(state, images, ids) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        projection_dim=768,
        vision_config={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14, "projection_dim": 768,
        },
        text_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "projection_dim": 768, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0,
        },
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
    weights = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in renamed(state).items()}
    model.load_state_dict(weights, assign=True, strict=True)
    for embeddings in (model.vision_model.embeddings, model.text_model.embeddings):
        count = embeddings.position_embedding.weight.shape[0]
        embeddings.position_ids = torch.arange(count)[None]  # no part of the state dict
    with torch.no_grad():
        vision = model.eval().vision_model(torch.from_numpy(images), output_hidden_states=True)
        text = model.text_model(torch.from_numpy(ids))
        return {
            "image": model.visual_projection(vision.pooler_output).numpy(),
            "text": model.text_projection(text.pooler_output).numpy(),
            "block 7": vision.hidden_states[8][:, 1:].numpy(),
            "block 15": vision.hidden_states[16][:, 1:].numpy(),
        }


def our_outputs(state, images, ids) -> dict[str, np.ndarray]:
    source = Source(
        (Path("clip.pt"),), {key: Tensor(array.shape, lambda: None) for key, array in state.items()}, {}, ()
    )
    found = recognise(source, "clip", [])
    config = from_dict({"model": found.model}).model
    graph, described = describe(lambda: TwoTowers(config, rngs=any_values()))
    towers = bind(graph, apply_rules(state, found.rows, {name: leaf.shape for name, leaf in described.items()}))
    features = run(towers, lambda towers, images: towers.vision(images), channels_last(images))
    first, second = (np.asarray(tap).reshape(1, -1, 1024) for tap in features.intermediate)
    text = run(towers, lambda towers, ids: towers.text(ids), ids)
    return {"image": features.cls, "text": text, "block 7": first, "block 15": second}


def test_the_same_features(compare):
    pytest.importorskip("transformers")
    random = np.random.default_rng(0)
    images = random.standard_normal((1, 3, 336, 336), np.float32)
    ids = np.zeros((3, 77), np.int64)
    for row, length in zip(ids, (3, 20, 75), strict=True):
        row[: length + 2] = [49406, *random.integers(1, 49406, length), 49407]
    state = {key: value(key) for key, shape in LAYOUT.items() if len(shape) or key == "logit_scale"}
    theirs = their_outputs(state, images, ids)
    ours = our_outputs(state, images, ids)
    for name, official in theirs.items():
        compare(name, ours[name], official, TOLERANCE, relative=True)
