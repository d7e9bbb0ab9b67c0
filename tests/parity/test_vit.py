"""The DINOv3 ViT against the official modules, per layer: the official ones and Hugging Face's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dinov3seg_jax.convert.tables import dinov3, huggingface
from dinov3seg_jax.models.rope import patch_centres, rope_tables, rotate_patches
from dinov3seg_jax.models.vit import Tokens, VisionTransformer
from tests.parity.fixtures import fixtures
from tests.parity.official import (
    arrays,
    channels_last,
    described,
    filled,
    huggingface_config,
    left_out,
    run,
    section,
    state_dict,
    vision_config,
)

TOLERANCE = 5e-5
ROPE_TOLERANCE = 1e-6


@functools.cache
def load(path):
    return arrays(path)


@functools.cache
def model(path) -> VisionTransformer:
    config = described(load(path), "meta/config_json")["config"]
    ours = vision_config(config)
    rows = (*dinov3.RULES, *left_out(config))
    return filled(lambda: VisionTransformer(ours, rngs=nnx.Rngs(0)), state_dict(load(path)), rows)


@functools.cache
def huggingface_model(path) -> VisionTransformer:
    config = huggingface_config(described(load(path), "meta/config_json")["hf_config"])
    rows = huggingface.rules(config.rope_base)
    return filled(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)), state_dict(load(path)), rows)


def cases(prefix: str):
    return [
        pytest.param(path, case, id=f"{path.stem}-{case}")
        for path in fixtures(prefix)
        for case in described(load(path), "meta/config_json")["cases"]
    ]


MASKED = [case for case in cases("vit") if f"in/{case.values[1]}/masks" in load(case.values[0])]


def joined(tokens: Tokens) -> jax.Array:
    patches = tokens.patches
    flat = patches.reshape(patches.shape[0], -1, patches.shape[-1])
    return jnp.concatenate([tokens.cls[:, None], tokens.storage, flat], axis=1)


def every_layer(vit: VisionTransformer, image: jax.Array) -> dict[str, Any]:
    """What the files call it -> ours."""
    depth = vit.config.depth
    embedded, h, w = vit.embed(image)
    sin, cos = rope_tables(vit.periods[...], patch_centres(h, w, vit.config.rope_normalize))
    found = {"tokens_in": embedded, "rope_sin": sin, "rope_cos": cos}
    raw = vit(image, layers=range(depth), norm=False)
    for number, layer in enumerate(raw):
        normed = vit.normalize(layer)
        found[f"block{number}_out"] = joined(layer)
        found[f"layer{number}_cls"] = normed.cls
        found[f"layer{number}_storage"] = normed.storage
        found[f"layer{number}_patch_nchw"] = normed.patches.transpose(0, 3, 1, 2)
    return found | final(raw[-1], normed) | first_block(vit, embedded, sin, cos)


def final(raw: Tokens, normed: Tokens, prefix: str = "") -> dict[str, Any]:
    b, h, w, d = normed.patches.shape
    return {
        f"{prefix}x_prenorm": joined(raw),
        f"{prefix}x_norm_clstoken": normed.cls,
        f"{prefix}x_storage_tokens": normed.storage,
        f"{prefix}x_norm_patchtokens": normed.patches.reshape(b, h * w, d),
    }


def first_block(vit: VisionTransformer, x: jax.Array, sin: jax.Array, cos: jax.Array) -> dict[str, Any]:
    graph, state = nnx.split(vit.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], state))

    def rotate(t: jax.Array) -> jax.Array:
        return rotate_patches(t, sin, cos)

    normed = block.norm1(x)
    query, key, value = block.attention.project(normed)
    fused = jnp.concatenate([part.reshape(x.shape) for part in (query, key, value)], axis=-1)
    attended = block.attention(normed, rotate=rotate)
    after = x + attended * block.ls1[...]
    return {
        "block0_norm1": normed,
        "block0_qkv": fused,
        "block0_q_rope": rotate(query).transpose(0, 2, 1, 3),
        "block0_k_rope": rotate(key).transpose(0, 2, 1, 3),
        "block0_attn_out": attended,
        "block0_after_attn": after,
        "block0_mlp_out": block.ffn(block.norm2(after)),
    }


@pytest.mark.parametrize(("path", "case"), cases("vit"))
def test_every_layer_is_the_official_one(path, case, compare):
    values = load(path)
    image = channels_last(values[f"in/{case}/image"])
    stored = {name: x for name, x in section(values, f"out/{case}/").items() if not name.startswith("masked_")}

    def wanted(vit: VisionTransformer, image: jax.Array) -> dict[str, Any]:
        found = every_layer(vit, image)
        return {name: found[name] for name in stored}

    ours = run(model(path), wanted, image)
    for name, official in stored.items():
        compare(name, ours[name], official, ROPE_TOLERANCE if name.startswith("rope_") else TOLERANCE)


@pytest.mark.parametrize(("path", "case"), MASKED)
def test_masked_patches_become_the_mask_token(path, case, compare):
    values = load(path)
    image = channels_last(values[f"in/{case}/image"])
    patch = model(path).config.patch_size
    masks = values[f"in/{case}/masks"].reshape(len(image), image.shape[1] // patch, -1)

    def masked(vit: VisionTransformer, image: jax.Array, masks: jax.Array) -> dict[str, Any]:
        (raw,) = vit(image, norm=False, masks=masks)
        return final(raw, vit.normalize(raw), "masked_")

    ours = run(model(path), masked, image, masks)
    for name, official in section(values, f"out/{case}/masked_").items():
        compare(name, ours[f"masked_{name}"], official, TOLERANCE)


@pytest.mark.parametrize(("path", "case"), cases("hf_vit"))
def test_hugging_face_outputs(path, case, compare):
    values = load(path)
    (ours,) = run(huggingface_model(path), lambda vit, image: vit(image), channels_last(values[f"in/{case}/image"]))
    compare("last_hidden_state", joined(ours), values[f"out/{case}/last_hidden_state"], TOLERANCE)
    compare("pooler_output", ours.cls, values[f"out/{case}/pooler_output"], TOLERANCE)
