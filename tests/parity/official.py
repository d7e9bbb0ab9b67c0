"""Reference files as arrays, their configurations as ours, and modules filled with their weights."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3seg_jax.config import SamConfig, TextConfig, VisionConfig
from dinov3seg_jax.convert.tables.rules import Fill, Row, apply_rules
from dinov3seg_jax.models.graph import bind, flatten

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # most time is compiling


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything a file holds."""
    with np.load(path) as archive:
        return dict(archive)


def section(values: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries below a prefix, which is taken off."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def described(values: Mapping[str, np.ndarray], key: str) -> Any:
    """A JSON text stored in a file."""
    return json.loads(str(values[key]))


def state_dict(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Official weights, sparse ones made dense."""
    state = section(values, "sd/")
    for key, shape in values.items():
        if key.startswith("sd_sparse/") and key.endswith("/shape"):
            stem = key.removesuffix("/shape")
            dense = np.zeros(shape, np.float32)
            dense[values[f"{stem}/row_ids"]] = values[f"{stem}/rows"]
            state[stem.removeprefix("sd_sparse/")] = dense
    return state


def vision_config(official: Mapping[str, Any], head_blocks: int = 0) -> VisionConfig:
    """The keyword arguments of the official ViT class, as our options."""
    kind, align = re.fullmatch(r"([a-z]+)(\d*)", official["ffn_layer"]).groups()
    return VisionConfig(
        dim=official["embed_dim"],
        depth=official["depth"],
        heads=official["num_heads"],
        patch_size=official["patch_size"],
        ffn=kind,
        ffn_ratio=float(official["ffn_ratio"]),
        ffn_align=int(align or 8),
        qkv_bias=official["qkv_bias"],
        storage_tokens=official["n_storage_tokens"],
        rope_base=official["pos_embed_rope_base"] or 100.0,  # with explicit periods, the file's own ones count
        rope_normalize=official["pos_embed_rope_normalize_coords"],
        untie_cls_and_patch_norms=official["untie_cls_and_patch_norms"],
        head_blocks=head_blocks,
    )


def text_config(official: Mapping[str, Any]) -> TextConfig:
    """The options of dinov3.txt's text tower, as ours."""
    return TextConfig(
        dim=official["dim"],
        depth=official["num_layers"],
        heads=official["num_heads"],
        ffn_ratio=official["ffn_ratio"],
        vocab_size=official["vocab_size"],
        context_length=official["context_length"],
    )


def left_out(official: Mapping[str, Any]) -> tuple[Row, ...]:
    """Neutral values of what no released ViT leaves out, so that ours always has it."""
    return (
        *([] if official["proj_bias"] else [Fill("blocks/attention/out/bias", np.zeros)]),
        *([] if official["ffn_bias"] else [Fill("blocks/ffn/.*/bias", np.zeros)]),
        *([] if official["layerscale_init"] is not None else [Fill("blocks/ls[12]", np.ones)]),
    )


def huggingface_config(official: Mapping[str, Any]) -> VisionConfig:
    """The options of a DINOv3ViTModel as ours; its hidden width is given outright."""
    gated, dim, hidden = official["use_gated_mlp"], official["hidden_size"], official["intermediate_size"]
    before_two_thirds = -(-3 * hidden // 2) if gated else hidden
    return VisionConfig(
        dim=dim,
        depth=official["num_hidden_layers"],
        heads=official["num_attention_heads"],
        patch_size=official.get("patch_size", 16),
        ffn="swiglu" if gated else "mlp",
        ffn_ratio=(before_two_thirds + 0.5) / dim,
        ffn_align=1,
        qkv_bias=official.get("query_bias", True),
        storage_tokens=official["num_register_tokens"],
        rope_base=float(official.get("rope_theta", 100.0)),
        head_blocks=0,
    )


def sam_config(official: Mapping[str, Any]) -> SamConfig:
    """The keyword arguments of SAM's image encoder, as our options."""
    return SamConfig(
        dim=official["embed_dim"],
        depth=official["depth"],
        heads=official["num_heads"],
        patch_size=official["patch_size"],
        mlp_ratio=float(official["mlp_ratio"]),
        window=official["window_size"],
        global_blocks=tuple(official["global_attn_indexes"]),
        neck_dim=official["out_chans"],
        image_size=official["img_size"],
    )


def filled(create: Callable[[], nnx.Module], source: Mapping[str, np.ndarray], rows: Sequence[Row]) -> nnx.Module:
    """A module whose parameters are all converted from official weights."""
    graph, state = nnx.split(create())
    parameters = apply_rules(source, rows, {name: leaf.shape for name, leaf in flatten(state).items()})
    return bind(graph, {name: jnp.asarray(value) for name, value in parameters.items()})


def run(module: nnx.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(module, *inputs)`, compiled quickly, with full float32 products on every device."""
    graph, state = nnx.split(module)

    def call(state: nnx.State, *inputs: Any) -> Any:
        return function(nnx.merge(graph, state), *inputs)

    with jax.default_matmul_precision("highest"):
        return jax.jit(call, compiler_options=QUICK if jax.default_backend() == "cpu" else None)(state, *inputs)


def channels_last(x: np.ndarray) -> np.ndarray:
    """[b, c, *grid] -> [b, *grid, c]."""
    return np.moveaxis(x, 1, -1)


def channels_first(x: Any) -> np.ndarray:
    """[b, *grid, c] -> [b, c, *grid]."""
    return np.moveaxis(np.asarray(x), -1, 1)
