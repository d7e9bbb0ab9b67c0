"""dinov3.txt's two towers against the official module, in the structure that was released."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dinov3seg_jax.convert.tables import dinotxt
from dinov3seg_jax.models.dinotxt import TextTower, VisionTower
from dinov3seg_jax.models.functions import l2_normalize
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, channels_last, described, filled, run, state_dict, text_config, vision_config

TOLERANCE = 5e-5
NORM_TOLERANCE = 2e-6
RELEASED = {  # of the options that change the structure; the others have no counterpart here
    "vision_model_use_class_token": True,
    "vision_model_use_patch_tokens": True,
    "vision_model_use_linear_projection": False,
    "vision_model_patch_tokens_pooler_type": "mean",
    "vision_model_patch_token_layer": 1,
    "text_model_num_head_blocks": 0,
    "text_model_tokens_pooler_type": "argmax",
    "text_model_use_linear_projection": True,
}
RELEASED_TEXT = {"is_causal": True, "ls_init_value": None}


class Towers(nnx.Module):
    """Both towers under the names that they have in the whole model."""

    def __init__(self, config: dict, *, rngs: nnx.Rngs):
        vision = vision_config(config["backbone_config"], config["dinotxt_config"]["vision_model_num_head_blocks"])
        text = text_config(config["text_config"])
        self.vision = VisionTower(vision, dtype=jnp.float32, rngs=rngs)
        self.text = TextTower(text, config["dinotxt_config"]["embed_dim"], dtype=jnp.float32, rngs=rngs)


@functools.cache
def load(path):
    return arrays(path)


@functools.cache
def towers(path) -> Towers:
    values = load(path)
    config = described(values, "meta/config_json")
    other = [name for name, value in RELEASED.items() if config["dinotxt_config"][name] != value]
    other += [name for name, value in RELEASED_TEXT.items() if config["text_config"][name] != value]
    if other:
        pytest.skip(f"no release has this structure, nor do we: {', '.join(other)}")
    return filled(lambda: Towers(config, rngs=nnx.Rngs(0)), state_dict(values), dinotxt.RULES)


FILES = fixtures("dinotxt")
CASES = [
    pytest.param(path, case, id=f"{path.stem}-{case}")
    for path in FILES
    for case in described(load(path), "meta/config_json")["cases"]
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_text(path, compare):
    values = load(path)
    both = towers(path)
    features = run(both.text, lambda text, tokens: text(tokens), values["in/text/tokens"])
    compare("features", features, values["out/text/features"], TOLERANCE)
    compare("features_norm", l2_normalize(features), values["out/text/features_norm"], NORM_TOLERANCE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_text_per_layer(path, compare):
    values = load(path)
    rows = values["in/text/tokens"][values["in/text/hidden_rows"]]

    def hidden(text: TextTower, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        graph, state = nnx.split(text.blocks)
        x = text.token_embedding[...][tokens] + text.positional_embedding[: tokens.shape[1]]
        outputs = []
        for number in range(text.config.depth):
            block = nnx.merge(graph, jax.tree.map(lambda leaf, number=number: leaf[number], state))
            x = block(x, causal=True)
            outputs.append(x)
        return outputs[0], text.norm(x)

    first, last = run(towers(path).text, hidden, rows)
    compare("hidden_block0", first, values["out/text/hidden_block0"], TOLERANCE)
    compare("hidden_ln_final", last, values["out/text/hidden_ln_final"], TOLERANCE)


@pytest.mark.parametrize(("path", "case"), CASES)
def test_vision(path, case, compare):
    values = load(path)
    both = towers(path)

    def see(vision: VisionTower, image: jax.Array):
        (backbone,) = vision.backbone(image)
        return backbone, vision(image)

    backbone, features = run(both.vision, see, channels_last(values[f"in/{case}/image"]))
    b, h, w, d = features.patches.shape
    head_patches = features.patches.reshape(b, h * w, d)
    embedding = jnp.concatenate([features.cls, head_patches.mean(axis=1)], axis=-1)
    normed = l2_normalize(embedding)
    text = l2_normalize(values["out/text/features"])
    ours = {
        "backbone_class_token": backbone.cls,
        "backbone_register_tokens": backbone.storage,
        "backbone_patch_tokens": features.backbone_patches.reshape(b, h * w, d),
        "head_class_token": features.cls,
        "head_patch_tokens": head_patches,
        "features": embedding,
        "image_logits": jnp.exp(both.text.logit_scale[...]) * normed @ text.T,
    }
    for name, value in ours.items():
        compare(name, value, values[f"out/{case}/{name}"], TOLERANCE)
    compare("features_norm", normed, values[f"out/{case}/features_norm"], NORM_TOLERANCE)
