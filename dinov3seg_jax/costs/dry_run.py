"""What a run would cost, without weights, data or an accelerator."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dinov3seg_jax.config import Config, DataConfig
from dinov3seg_jax.costs.budget import SHARE, Attempt, attempts
from dinov3seg_jax.costs.step_memory import (
    StepMemory,
    abstract_batch,
    kept_of_a_crop,
    memory_of,
    mesh_of,
    step_memory,
    trace_one_device,
)
from dinov3seg_jax.costs.topology import advise, describe, estimate, topology_mesh
from dinov3seg_jax.data.datasets import check_classes, picture_count
from dinov3seg_jax.data.held_out import open_training
from dinov3seg_jax.data.mixed import trained_names
from dinov3seg_jax.errors import note
from dinov3seg_jax.text.prompts import training_prompts
from dinov3seg_jax.training.extent import extent
from dinov3seg_jax.training.flops import count_flops, count_traced
from dinov3seg_jax.training.program import describe_step, refuse_uneven_batches
from dinov3seg_jax.training.sharding import AnyMesh, example_shares, make_mesh
from dinov3seg_jax.training.step import Batch

SMALLEST_SHOWN = 10**6  # bytes
PARTS_SHOWN = 5
TAKEN = 0.75  # of a GPU's memory, by JAX when it starts

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
    note("model.tokenizer names no file, so that lengths of prompts are those of CLIP's")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, towers="clip"))


def dry_run(config: Config, topology: str = "", devices: int = 0, memory: int = 0) -> bool:
    """Trace the training step at its real size and print parameters, operations and bytes.

    Args:
        config: of the run.
        topology: compile it for a slice of TPUs too, as in "v5e:16x16"; see `topology.estimate`.
        devices: of the run, which need not be there; 0: those that are, or the slice's.
        memory: bytes of each device; if the step needs more, look for options that make it fit. 0: do not ask.

    Returns:
        Whether the step fits `memory` as it is.

    Raises:
        UserError: the config does not fit together, or not the devices; or the names of the classes cannot be used.
    """
    if config.model.attention == "auto":  # whose kernel on a GPU would hide its operations
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="portable"))
    names, asked = trained_names(config.data), _asked(config)
    if not config.model.linear.classes:
        check_classes(names, f"data set '{config.data.train.name}'", config.inference.templates, asked.model)
    mesh: AnyMesh
    if topology:
        mesh = topology_mesh(config, topology)
    elif devices:
        mesh = mesh_of(config, devices)
        refuse_uneven_batches(config, mesh)
    else:
        mesh = make_mesh(config.data_parallel, config.model_parallel, replicas=config.replicas)
    program = describe_step(config, mesh)
    state, frozen, at = program.state, program.frozen, program.shardings
    tokens = training_prompts(names, asked)
    batch = abstract_batch(config, len(names))
    print(parameter_table(state.trainable, frozen))
    devices = mesh.size
    shape = tokens.shape[0], tokens.shape[1]
    one = trace_one_device(config, example_shares(mesh), shape)
    flops = (
        count_flops(program.step, state, frozen, program.described_names(tokens), batch)
        if devices > 1
        else count_traced(one.traced)
    )
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
    for label, (tree, shardings) in rows.items():
        everywhere, each = tree_bytes(tree), tree_bytes(tree, shardings)
        print(f"  {label:34s} {everywhere / 1e9:10.3f} GB a step, {each / 1e9:.3f} a device")
    needed = step_memory(program, one)
    print(memory_table(needed))
    if memory and not config.model.linear.classes:
        print(kept_line(kept_of_a_crop(config, len(names))), flush=True)
    fits = not memory or say_whether_it_fits(config, mesh, shape, needed, memory)
    if topology:
        found = estimate(config, topology, tokens, batch)
        print(describe(found), flush=True)
        if advice := advise(found, tree_bytes(frozen) - tree_bytes(frozen, at.frozen)):
            note(advice)
    print("nothing was allocated, read or written")
    return fits


def _pictures(data: DataConfig) -> int | None:
    if data.validation or data.mix:
        return len(open_training(data).source)
    return picture_count(data.train)


def memory_table(needed: StepMemory) -> str:
    """What a device holds at the fullest moment, by kind and part."""
    lines = [f"\nmemory of a device when it is fullest, estimated from the trace: {needed.total / 1e9:.2f} GB"]
    rows = sorted(needed.given.items(), key=lambda row: -row[1]) + sorted(needed.made.items(), key=lambda row: -row[1])
    lines += [f"  {label:34s} {size / 1e9:10.3f} GB" for label, size in rows if size >= SMALLEST_SHOWN]
    return "\n".join(lines)


def kept_line(kept: Mapping[str, int]) -> str:
    """What the backward pass keeps of a crop, in one line."""
    largest = sorted(kept.items(), key=lambda row: -row[1])[:PARTS_SHOWN]
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in largest)
    return f"kept of each crop for the backward pass: {sum(kept.values()) / 1e9:.2f} GB ({parts})"


def say_whether_it_fits(config: Config, mesh: AnyMesh, names: tuple[int, int], needed: StepMemory, memory: int) -> bool:
    """Print whether a step fits, and if not, the first options that make it fit."""
    room = f"{memory / 1e9:.1f} GB, of which {SHARE:.0%} may be planned for"
    if Attempt((), needed).fits(memory):
        print(f"it fits {room}")
        if needed.total > TAKEN * memory:
            more = f"XLA_PYTHON_CLIENT_MEM_FRACTION={SHARE}"
            print(f"JAX takes {TAKEN:.0%} of a GPU by itself; start the run with {more}")
        return True
    print(f"it does not fit {room}; with more options it needs", flush=True)
    for attempt in attempts(config, example_shares(mesh), names[0], lambda more: memory_of(more, mesh.size, names)):
        print(f"  {attempt.needed.total / 1e9:8.2f} GB  {attempt.words}", flush=True)
        if attempt.fits(memory):
            print(f"it fits with {attempt.words}")
            return False
    print("none of these is enough: give it more devices, or a smaller data.crop_size or model")
    return False


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
