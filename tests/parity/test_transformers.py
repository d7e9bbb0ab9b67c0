"""Hugging Face's `transformers` at full ViT-S and ViT-B size, with random weights: `pip install -e ".[parity]"`."""

import dataclasses
import math
import re

import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.convert.tables import huggingface, sam
from dinov3seg_jax.models.attention import LONG
from dinov3seg_jax.models.presets import SAM, VISION
from dinov3seg_jax.models.sam import SamEncoder
from dinov3seg_jax.models.vit import VisionTransformer
from tests.parity.official import channels_first, filled, run
from tests.parity.test_vit import joined

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4

# Hugging Face's names of SAM's image encoder -> the official ones.
SAM_NAMES = (
    (r"layers\.(\d+)\.layer_norm([12])", r"blocks.\1.norm\2"),
    (r"layers\.(\d+)", r"blocks.\1"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
)


def randomized(model):
    """Nothing trivially 0 or 1, and activations that neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = math.prod(parameter.shape[1:])
            if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                parameter.copy_(1 + 0.2 * noise)
            elif "lambda1" in name:
                parameter.copy_(0.3 * noise)
            elif name.endswith("weight"):
                parameter.copy_(noise / math.sqrt(fan_in))
            else:
                parameter.copy_(0.2 * noise)
    return model.eval()


def weights(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def images(height, width):
    return np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)


@pytest.mark.parametrize("size", [(224, 224), (320, 448)], ids=str)
@pytest.mark.parametrize("name", ["vits16", "vitb16"])
def test_dinov3(name, size, compare):
    config = VISION[name]
    theirs = randomized(
        transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                hidden_size=config.dim,
                intermediate_size=int(config.dim * config.ffn_ratio),
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                num_register_tokens=config.storage_tokens,
            )
        )
    )
    ours = filled(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)), weights(theirs), huggingface.rules())
    image = images(*size)
    with torch.inference_mode():
        official = theirs(torch.from_numpy(image))
    (tokens,) = run(ours, lambda vit, x: vit(x), np.moveaxis(image, 1, -1))
    assert (official.last_hidden_state.shape[1] >= LONG) == (size != (224, 224))  # both forms of our attention
    compare("last_hidden_state", joined(tokens), official.last_hidden_state.numpy(), TOLERANCE)
    compare("pooler_output", tokens.cls, official.pooler_output.numpy(), TOLERANCE)


@pytest.mark.parametrize("size", [512, 1024])
def test_sam(size, compare):
    config = SAM["sam_vit_b"]
    theirs = randomized(
        transformers.SamVisionModel(
            transformers.SamVisionConfig(
                hidden_size=config.dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                global_attn_indexes=list(config.global_blocks),
                window_size=config.window,
                output_channels=config.neck_dim,
                image_size=size,  # it takes no other
            )
        )
    )
    source = {}
    for name, value in weights(theirs).items():
        name = name.removeprefix("vision_encoder.")
        for pattern, official in SAM_NAMES:
            name = re.sub(rf"^{pattern}(?=\.)", official, name)
        source[name] = value
    config = dataclasses.replace(config, image_size=size)
    ours = filled(lambda: SamEncoder(config, rngs=nnx.Rngs(0)), source, sam.rules(config))
    image = images(size, size)
    with torch.inference_mode():
        official = theirs(torch.from_numpy(image)).last_hidden_state.numpy()
    (neck, *_) = run(ours, lambda encoder, x: encoder(x), np.moveaxis(image, 1, -1))
    compare("embedding", channels_first(neck), official, TOLERANCE)
