"""What `dinov3seg verify` can compare: our parts' outputs, by the names and in the layout of PyTorch's."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.dinotxt import TextTower, VisionTower
from dinov3seg_jax.models.early_refinement import EarlyRefinement
from dinov3seg_jax.models.functions import l2_normalize
from dinov3seg_jax.models.graph import bind, describe
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.models.sam import SamEncoder
from dinov3seg_jax.models.vit import Tokens

Outputs = dict[str, Array]
Inputs = Mapping[str, np.ndarray]

OF_LAYER = re.compile(r"(?:block|layer)(\d+)_(?:out|cls|storage|patch_nchw)")


class Part(NamedTuple):
    """A row of the table below."""

    start: str  # of the names of its parameters
    inputs: tuple[str, ...]  # of a case
    create: Callable[[ModelConfig], nnx.Module]
    outputs: Callable[..., Outputs]  # (module, wanted, *inputs) -> what can be compared


def compute(config: ModelConfig, parameters: Parameters, inputs: Inputs, wanted: set[str]) -> Outputs:
    """Outputs of whichever parts are there and take these inputs, in full float32.

    Args:
        config: of the model that the parts belong to.
        parameters: of converted folders.
        inputs: of one case: "image" [b, 3, height, width], normalised; "tokens" [n, length]; "features" [b, c, h, w].
        wanted: names of outputs; those that no part has are left out.
    """
    found: Outputs = {}
    for part in PARTS:
        own = {name.removeprefix(part.start): x for name, x in parameters.items() if name.startswith(part.start)}
        graph, described = describe(functools.partial(part.create, config))
        if described.keys() != own.keys() or set(part.inputs) != inputs.keys():
            continue

        def run(own: Parameters, *values: Array, part: Part = part, graph: nnx.GraphDef = graph) -> Outputs:
            return {name: x for name, x in part.outputs(bind(graph, own), wanted, *values).items() if name in wanted}

        with jax.default_matmul_precision("highest"):
            found |= jax.jit(run)(own, *(jnp.asarray(inputs[name]) for name in part.inputs))
    return found


def vision_outputs(tower: VisionTower, wanted: set[str], image: Float[Array, "b 3 height width"]) -> Outputs:
    """A backbone, by the official names and Hugging Face's, and dinov3.txt's head where there is one."""
    backbone = tower.backbone
    depth = backbone.config.depth
    images = jnp.moveaxis(image, 1, -1)
    numbers = {int(match[1]) for name in wanted if (match := OF_LAYER.fullmatch(name))}
    layers = sorted({depth - 1, *(number for number in numbers if number < depth)})
    raw = backbone(images, layers=layers, norm=False)
    last = backbone.normalize(raw[-1])
    found = {
        "tokens_in": backbone.embed(images)[0],
        "x_prenorm": _joined(raw[-1]),
        "x_norm_clstoken": last.cls,
        "x_storage_tokens": last.storage,
        "x_norm_patchtokens": _flat(last.patches),
        "last_hidden_state": _joined(last),
        "pooler_output": last.cls,
        "backbone_class_token": last.cls,
        "backbone_register_tokens": last.storage,
        "backbone_patch_tokens": _flat(last.patches),
    }
    for number, layer in zip(layers, raw, strict=True):
        normed = backbone.normalize(layer)
        found |= {
            f"block{number}_out": _joined(layer),
            f"layer{number}_cls": normed.cls,
            f"layer{number}_storage": normed.storage,
            f"layer{number}_patch_nchw": jnp.moveaxis(normed.patches, -1, 1),
        }
    if not tower.has_head:
        return found
    head = tower.head(last)
    features = jnp.concatenate([head.cls, head.patches.mean(axis=(1, 2))], axis=-1)
    return found | {
        "head_class_token": head.cls,
        "head_patch_tokens": _flat(head.patches),
        "features": features,
        "features_norm": l2_normalize(features),
    }


def text_outputs(tower: TextTower, wanted: set[str], tokens: Int[Array, "n length"]) -> Outputs:
    """dinov3.txt's text features."""
    features = tower(tokens)
    return {"features": features, "features_norm": l2_normalize(features)}


def sam_outputs(encoder: SamEncoder, wanted: set[str], image: Float[Array, "b 3 height width"]) -> Outputs:
    """SAM's image embedding."""
    neck, *_ = encoder(jnp.moveaxis(image, 1, -1))
    return {"embedding": jnp.moveaxis(neck, -1, 1)}


def early_outputs(
    refinement: EarlyRefinement,
    wanted: set[str],
    image: Float[Array, "b 3 height width"],
    features: Float[Array, "b c h w"],
) -> Outputs:
    """AnyUp's features at the image's own size."""
    images, given = jnp.moveaxis(image, 1, -1), jnp.moveaxis(features, 1, -1)
    _, height, width, _ = images.shape
    return {"upsampled": jnp.moveaxis(refinement(images, given, (height, width)), -1, 1)}


def _vision(config: ModelConfig) -> nnx.Module:
    return VisionTower(config.vision, dtype=jnp.float32, rngs=nnx.Rngs(0))


def _text(config: ModelConfig) -> nnx.Module:
    return TextTower(config.text, 2 * config.vision.dim, dtype=jnp.float32, rngs=nnx.Rngs(0))


PARTS = (
    Part("vision/", ("image",), _vision, vision_outputs),
    Part("text/", ("tokens",), _text, text_outputs),
    Part("sam/", ("image",), lambda config: SamEncoder(config.sam, rngs=nnx.Rngs(0)), sam_outputs),
    Part(
        "early/", ("image", "features"), lambda config: EarlyRefinement(config.early, rngs=nnx.Rngs(0)), early_outputs
    ),
)


def _flat(patches: Float[Array, "b h w d"]) -> Float[Array, "b n d"]:
    return patches.reshape(patches.shape[0], -1, patches.shape[-1])


def _joined(tokens: Tokens) -> Any:
    return jnp.concatenate([tokens.cls[:, None], tokens.storage, _flat(tokens.patches)], axis=1)
