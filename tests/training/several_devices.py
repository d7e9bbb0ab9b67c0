"""What `test_several_devices.py` runs in processes of its own, since the number of devices is fixed when JAX starts.

    python -m tests.training.several_devices '{"meshes": [[8, 1]], "steps": 3}'

prints, one line of JSON for each mesh of (data, model), what came of it.
"""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dinov3seg_jax.config import Config, DecoderConfig, LateRefinementConfig, TextConfig, TrainConfig, VisionConfig
from dinov3seg_jax.models import kernel_parts
from dinov3seg_jax.models.graph import build, initialize
from dinov3seg_jax.training.finetune import partition
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.program import describe_step
from dinov3seg_jax.training.sharding import make_mesh, on_mesh
from dinov3seg_jax.training.step import Batch, TrainState, make_gradient
from tests.tiny import MODEL

BATCH, SIDE, NAMES, VOCABULARY = 8, 32, 5, 64  # five names over eight devices: the text tower's batch does not divide
WHOLE = dataclasses.replace(
    MODEL,
    vision=dataclasses.replace(MODEL.vision, depth=2),
    text=dataclasses.replace(MODEL.text, vocab_size=VOCABULARY),
)
SMALL = dataclasses.replace(
    WHOLE,
    vision=VisionConfig(dim=16, depth=2, heads=2, layerscale_init=1.0, head_blocks=0),
    text=TextConfig(dim=16, depth=1, heads=2, vocab_size=VOCABULARY),
    spe="none",
    late=LateRefinementConfig(enabled=False, dim=16),
    decoder=DecoderConfig(dims=(16, 16), guidance_dims=(8, 8)),
)
LATE = LateRefinementConfig(layers=1, dim=128, heads=4, window=4, kernel="fused", class_kernel="fused")
FUSED = dataclasses.replace(SMALL, late=LATE)
MODELS = {"small": (SMALL, SIDE), "whole": (WHOLE, SIDE), "fused": (FUSED, 2 * SIDE)}  # and the side of their crops
# The paper's rates, at which rounding stays as small as it is: Adam amplifies it where a gradient is nothing else.
CONFIG = Config(model=SMALL, train=TrainConfig(batch_size=BATCH, finetune="full"), fsdp_bytes=0)


def main(
    meshes: list[tuple[int, ...]],
    steps: int,
    objective: str = "masks",
    model: str = "small",
    gradients: Sequence[int] = (),
    processes: tuple[str, int, int] | None = None,
    once: bool = False,
) -> None:
    """Run every mesh.

    Args:
        meshes: their devices along data and model and, if told, the number of replicas.
        steps: of training.
        objective: of training.
        model: a key of MODELS.
        gradients: the meshes, counted from 0, to tell how gradients are cut on: one more program to compile for each.
        processes: those that share the meshes: where the first listens, how many, and which this is.
        once: gather what trains once a step.
    """
    if processes:
        jax.distributed.initialize(*processes)
    train = dataclasses.replace(CONFIG.train, objective=objective)
    parts, side = MODELS[model]
    kernel_parts.INTERPRET = True
    config = dataclasses.replace(CONFIG, model=parts, train=train, fsdp_gather_once=once)
    for index, shape in enumerate(meshes):
        print(json.dumps(run(config, tuple(shape), steps, side, index in gradients)), flush=True)


def run(config: Config, shape: tuple[int, ...], steps: int, side: int, gradients: bool) -> dict[str, Any]:
    """Losses, how the memories of several devices share arrays out, and which of them gather from one another."""
    data, model, *replicas = shape
    mesh = make_mesh(data, model, jax.devices()[: data * model], *replicas)
    run = describe_step(config, mesh)
    placed, frozen_at, everywhere, by_example = run.shardings
    trainable, frozen = partition(initialize(config.model, jax.random.key(0)), config.model, config.train)
    trainable, frozen = jax.device_put((trainable, frozen), (placed.trainable, frozen_at))
    optimizer = jax.jit(make_optimizer(config.train).init, out_shardings=placed.optimizer)(trainable)
    state = TrainState(jax.device_put(np.int32(0), placed.step), trainable, optimizer)
    names = jax.device_put(np.random.default_rng(0).integers(1, VOCABULARY, (NAMES, 8), np.int32), everywhere)
    found: dict[str, Any] = {"losses": [], "cuts": {}, "shapes": {name: x.shape for name, x in trainable.items()}}
    if gradients:
        gradient = on_mesh(make_gradient(config, build(config.model)[0], placed.trainable), mesh)
        batch = jax.device_put(batch_of(0, side), by_example)
        found["cuts"]["gradients"] = cuts(jax.jit(gradient)(trainable, frozen, state.step, names, batch)[2])
    compiled = run.step.lower(state, frozen, names, jax.device_put(batch_of(0, side), by_example)).compile()
    found["gathers"] = groups_of("all-gather", compiled.as_text())
    found["number of gathers"] = compiled.as_text().count(" all-gather(")
    for step in range(steps):
        state, metrics = compiled(state, frozen, names, jax.device_put(batch_of(step, side), by_example))
        found["losses"].append(float(metrics["loss"]))
    (adam,) = (part for part in jax.tree.leaves(state.optimizer, is_leaf=is_adam) if is_adam(part))
    trees = {"parameters": state.trainable, "first moments": adam.mu, "second moments": adam.nu}
    found["cuts"] |= {title: cuts(tree) for title, tree in trees.items()}
    return found


def numbers(text: str) -> tuple[int, ...]:
    """As in "2,4"."""
    return tuple(map(int, text.split(",")))


def groups_of(kind: str, text: str) -> list[tuple[list[int], int]]:
    """Every group of devices that some collective of that kind joins, and the numbers in the largest result."""
    found: dict[tuple[int, ...], int] = {}
    for shape_of_result, instruction in re.findall(rf"= \(?\w+\[([\d,]*)\].*?( {kind}(?:-start)?\(.*)", text):
        size = math.prod(numbers(shape_of_result)) if shape_of_result else 1
        if explicit := re.search(r"replica_groups=\{\{([\d,{} ]*)\}\}", instruction):
            groups = [[int(device) for device in group.split(",")] for group in explicit[1].split("},{")]
        elif counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", instruction):
            shape, sides = numbers(counted[1]), numbers(counted[2])
            order = numbers(counted[3]) if counted[3] else None
            groups = np.arange(math.prod(sides)).reshape(sides).transpose(order).reshape(shape).tolist()
        else:
            form = r"replica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{([^}]*)\}"
            named = re.search(form, instruction)
            assert named, instruction
            axes = re.findall(r"'(\w+)'=(\d+)", named[1])
            sides = [int(side) for _, side in axes]
            devices = np.arange(math.prod(sides))
            if named[2]:
                devices = devices.reshape(numbers(named[2])).transpose(numbers(named[3]))
            inside = [place for place, (axis, _) in enumerate(axes) if f"'{axis}'" in named[4]]
            devices = np.moveaxis(devices.reshape(sides), inside, range(-len(inside), 0))
            groups = devices.reshape(-1, math.prod(sides[place] for place in inside)).tolist()
        for group in groups:
            if len(group) > 1:
                key = tuple(sorted(group))
                found[key] = max(found.get(key, 0), size)
    return [(list(group), size) for group, size in sorted(found.items())]


def batch_of(step: int, side: int = SIDE) -> Batch:
    """The same on every mesh; some pixels are ignored."""
    rng = np.random.default_rng(step)
    return Batch(
        rng.integers(0, 256, (BATCH, side, side, 3), np.uint8),
        rng.integers(-1, 3, (BATCH, side, side), np.int32),
        np.stack([rng.permutation(NAMES)[:3] for _ in range(BATCH)]).astype(np.int32),
    )


def is_adam(part: Any) -> bool:
    """Whether this part of an optimiser's state holds Adam's moments."""
    return hasattr(part, "mu")


def cuts(arrays: dict[str, jax.Array]) -> dict[str, float]:
    """An array's bytes divided by the most that any one device holds of it."""
    found = {}
    for name, array in arrays.items():
        held = dict.fromkeys(array.sharding.addressable_devices, 0)
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
        found[name] = array.nbytes / max(held.values())
    return found


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
