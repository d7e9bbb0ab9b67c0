"""What a run would cost, without weights, data or an accelerator."""

import dataclasses
import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dinov3seg_jax.config import Config, DataConfig
from dinov3seg_jax.costs.topology import describe, estimate, topology_mesh
from dinov3seg_jax.data.datasets import check_classes, picture_count
from dinov3seg_jax.data.held_out import open_training
from dinov3seg_jax.data.mixed import trained_names
from dinov3seg_jax.text.prompts import training_prompts
from dinov3seg_jax.training.extent import extent
from dinov3seg_jax.training.flops import count_flops
from dinov3seg_jax.training.program import describe_step
from dinov3seg_jax.training.sharding import make_mesh
from dinov3seg_jax.training.step import Batch

PARTS = {
    "vision/backbone": "vision backbone (DINOv3)",
    "vision/head": "vision head (dinov3.txt)",
    "vision": "vision tower",  # of CLIP or TIPSv2
    "text": "text tower",
    "sam": "Semantic Prior Encoder (SAM)",
    "guidance": "guidance projections",
    "early": "early refinement",
    "embed_correlation": "correlation embedding",
    "project_text": "text projection",
    "late": "late refinement",
    "decoder": "decoder",
    "correlation_skip": "correlation skip",
    "linear": "linear head",
}


def _asked(config: Config) -> Config:
    """What says how prompts are read: costs need their lengths alone, and not the tokenizer's file."""
    if config.model.towers != "tips" or config.model.tokenizer:
        return config
    print("note: model.tokenizer names no file, so that lengths of prompts are those of CLIP's", file=sys.stderr)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, towers="clip"))


def dry_run(config: Config, topology: str = "") -> None:
    """Trace the training step at its real size and print parameters, operations and bytes.

    Args:
        config: of the run.
        topology: compile it for a slice of TPUs too, as in "v5e:16x16"; see `topology.estimate`.

    Raises:
        UserError: the config does not fit together, or not the slice; or the names of the classes cannot be used.
    """
    names, asked = trained_names(config.data), _asked(config)
    if not config.model.linear.classes:
        check_classes(names, f"data set '{config.data.train.name}'", config.inference.templates, asked.model)
    mesh = topology_mesh(config, topology) if topology else make_mesh(config.data_parallel, config.model_parallel)
    program = describe_step(config, mesh)
    state, frozen, at = program.state, program.frozen, program.shardings
    tokens = training_prompts(names, asked)
    batch = abstract_batch(config, len(names))
    print(parameter_table(state.trainable, frozen))
    devices = mesh.size
    flops = count_flops(program.step, state, frozen, program.described_names(tokens), batch)
    b, side, k = config.train.batch_size, config.data.crop_size, batch.class_ids.shape[1]
    print(f"\none step: {b} crops of {side} x {side}, {k} of {len(names)} classes each, on {devices} device(s)")
    print(
        f"  matrix products and convolutions   {flops / 1e12:10.3f} TFLOP a step, {flops / devices / 1e12:.3f} a device"
    )
    print(f"  the run                            {extent(config.train, _pictures(config.data))}")
    rows = {
        "trainable parameters": (state.trainable, at.state.trainable),
        "gradients": (state.trainable, at.state.trainable),
        "optimiser state": (state.optimizer, at.state.optimizer),
        "frozen parameters": (frozen, at.frozen),
        "batch": (batch, Batch(*[at.batch] * 3)),
    }
    totals = [0, 0]
    for label, (tree, shardings) in rows.items():
        everywhere, each = tree_bytes(tree), tree_bytes(tree, shardings)
        totals = [totals[0] + everywhere, totals[1] + each]
        print(f"  {label:34s} {everywhere / 1e9:10.3f} GB a step, {each / 1e9:.3f} a device")
    print(f"  {'together, without activations':34s} {totals[0] / 1e9:10.3f} GB a step, {totals[1] / 1e9:.3f} a device")
    if topology:
        print(describe(estimate(config, topology, tokens, batch)), flush=True)
    print("nothing was allocated, read or written")


def _pictures(data: DataConfig) -> int | None:
    if data.validation or data.mix:
        return len(open_training(data).source)
    return picture_count(data.train)


def abstract_batch(config: Config, class_count: int) -> Batch:
    """The shapes of a batch."""
    b, side = config.train.batch_size, config.data.crop_size
    k = min(config.data.classes_per_image, class_count) or class_count
    return Batch(
        jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, side, side), jnp.int32),
        jax.ShapeDtypeStruct((b, k), jnp.int32),
    )


def parameter_table(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    """Numbers of parameters by part, trained and frozen."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for column, parameters in enumerate((trainable, frozen)):
        for name, leaf in parameters.items():
            part = next(prefix for prefix in PARTS if name.startswith(prefix + "/"))
            counts[part][column] += math.prod(leaf.shape)
    lines = [f"{'part':34s} {'trained':>15s} {'frozen':>15s}"]
    lines += [f"{PARTS[part]:34s} {counts[part][0]:15,} {counts[part][1]:15,}" for part in PARTS if part in counts]
    sums = [sum(column) for column in zip(*counts.values(), strict=True)]
    return "\n".join([*lines, f"{'together':34s} {sums[0]:15,} {sums[1]:15,}"])


def tree_bytes(tree: Any, shardings: Any = None) -> int:
    """Bytes of a tree of array descriptions, in all or on one device."""
    leaves = jax.tree.leaves(tree)
    if shardings is None:
        return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)
    placed = zip(leaves, jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf, s in placed)
