"""What a training step holds on each device, by part of the model, and what its backward pass keeps of a crop."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from dinov3seg_jax.config import Config
from dinov3seg_jax.costs.memory import Reading, array_bytes, peak
from dinov3seg_jax.models.graph import bind
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.program import StepProgram, describe_step
from dinov3seg_jax.training.sharding import AnyMesh, described_mesh, example_shares
from dinov3seg_jax.training.step import Batch, make_loss

GRADIENTS = "gradients"
REST = "optimiser and the rest"
FILES = {  # whose functions compute a part, whatever they call
    "early_refinement.py": "early refinement",
    "late_refinement.py": "late refinement",
    "decoder.py": "decoder",
    "sam.py": "Semantic Prior Encoder (SAM)",
    "losses.py": "loss",
    "linear_probe.py": "linear head",
    "correlation.py": "correlation",
    "semantic_prior.py": "guidance projections",
}
METHODS = {"encode_text": "text tower", "encode_patches": "vision tower", "train_logits": "linear head"}


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device."""

    given: dict[str, int]  # what the step is called with, by kind
    made: dict[str, int]  # gradients, activations and workspace by part, when they are most

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.given.values()) + sum(self.made.values())


def mesh_of(config: Config, devices: int) -> AnyMesh:
    """The mesh of a run on so many devices, which need not be there.

    Raises:
        UserError: `data_parallel`, `model_parallel` and `replicas` do not fit.
    """
    return described_mesh(config.data_parallel, config.model_parallel, devices, config.replicas)


def abstract_batch(config: Config, class_count: int, shares: int = 1) -> Batch:
    """The shapes of a batch, or with one of so many equal shares of each list of classes."""
    b, side = config.train.batch_size, config.data.crop_size
    k = -(-(min(config.data.classes_per_image, class_count) or class_count) // shares)
    return Batch(
        jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, side, side), jnp.int32),
        jax.ShapeDtypeStruct((b, k), jnp.int32),
    )


class OneDevice(NamedTuple):
    """What one device of a run computes, traced."""

    program: StepProgram
    arguments: tuple[Any, ...]  # of its step, described
    traced: core.ClosedJaxpr


def trace_one_device(config: Config, devices: int, names: tuple[int, int]) -> OneDevice:
    """Trace the step of a run's share of crops and names.

    A device is taken to compute the towers of its crops by itself: of what `model_parallel` shares out, classes alone
    are deducted.

    Args:
        config: of the run.
        devices: that share examples out, or groups of them.
        names: how many there are, and tokens of the longest prompt.
    """
    parts, (count, length) = config.train.accumulate, names
    alone = _alone(config, -(-config.train.batch_size // parts // devices) * parts, parts)
    program = describe_step(alone, mesh_of(alone, 1))
    tokens = jax.ShapeDtypeStruct((-(-count // devices), length), jnp.int32)
    arguments = (
        program.state,
        program.frozen,
        program.described_names(tokens),
        abstract_batch(alone, count, config.model_parallel),
    )
    return OneDevice(program, arguments, program.step.trace(*arguments).jaxpr)


def step_memory(shared: StepProgram, one: OneDevice, platform: str = "") -> StepMemory:
    """Add up what a device holds.

    Args:
        shared: the step of all devices, which says where parameters lie.
        one: what one of them computes.
        platform: for which the trace is read; see `memory.Reading`.
    """
    known: dict[Any, tuple[str, int]] = {}
    for name, leaf in shared.state.trainable.items():
        known[leaf.shape, leaf.dtype] = GRADIENTS, _on_one_device(leaf, shared.shardings.state.trainable[name])
    made = peak(one.traced.jaxpr, Reading(part_of, known, platform), in_place=len(jax.tree.leaves(shared.state)))
    return StepMemory(_given(shared, one), {part or REST: size for part, size in made.most_common() if size})


def memory_of(config: Config, devices: int, names: tuple[int, int], platform: str = "") -> StepMemory:
    """The same of a run on so many devices, which need not be there; `names` as for `trace_one_device`.

    Raises:
        UserError: options of the config contradict each other, or the number of devices.
    """
    mesh = mesh_of(config, devices)
    return step_memory(describe_step(config, mesh), trace_one_device(config, example_shares(mesh), names), platform)


def _given(shared: StepProgram, one: OneDevice) -> dict[str, int]:
    """Bytes of the arguments of a step by kind; what it does not use does not come onto the device."""
    state, at = shared.state, shared.shardings
    _, _, names, batch = one.arguments
    leaves = [
        *jax.tree.leaves(jax.tree.map(_on_one_device, (state, shared.frozen), (at.state, at.frozen))),
        *map(array_bytes, jax.tree.leaves((names, batch))),
    ]
    kinds = [
        *["optimiser state"] * len(jax.tree.leaves(state.step)),
        *["trainable parameters"] * len(state.trainable),
        *["optimiser state"] * len(jax.tree.leaves(state.optimizer)),
        *["frozen parameters"] * len(shared.frozen),
        *["batch and names"] * len(jax.tree.leaves((names, batch))),
    ]
    found: Counter[str] = Counter()
    for kind, size, is_used in zip(kinds, leaves, _used(one.traced.jaxpr), strict=True):
        found[kind] += size * is_used
    if shared.gathered:
        found["gathered parameters"] = shared.gathered
    return dict(found)


def _on_one_device(leaf: Any, sharding: jax.sharding.NamedSharding) -> int:
    return array_bytes(jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype))


def _used(jaxpr: core.Jaxpr) -> list[bool]:
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    read |= {id(variable) for variable in jaxpr.outvars}
    return [id(variable) in read for variable in jaxpr.invars]


def kept_of_a_crop(config: Config, class_count: int) -> Counter[str]:
    """Bytes by part of what the backward pass keeps of one crop, before any fusion: an upper bound.

    What the text tower keeps belongs to a step, and is not in it.
    """
    alone = _alone(config, 1, 1)
    program = describe_step(alone, mesh_of(alone, 1))
    loss, state, frozen = make_loss(alone, program.graph), program.state, program.frozen

    def embed(trainable: Parameters, frozen: Parameters, tokens: Any) -> Any:
        return bind(program.graph, join(trainable, frozen)).encode_text(tokens)

    def pull_back(trainable: Parameters, text: Any, frozen: Parameters, step: Any, batch: Batch) -> Any:
        return jax.vjp(lambda trainable, text: loss(trainable, frozen, text, step, batch)[0], trainable, text)[1]

    text = jax.eval_shape(embed, state.trainable, frozen, jax.ShapeDtypeStruct((class_count, 1), jnp.int32))
    batch = abstract_batch(alone, class_count, config.model_parallel)
    jaxpr = jax.make_jaxpr(pull_back)(state.trainable, text, frozen, state.step, batch).jaxpr
    makers = {id(variable): equation for equation in jaxpr.eqns for variable in equation.outvars}
    kept = {id(variable): variable for variable in jaxpr.outvars if id(variable) in makers}
    found: Counter[str] = Counter()
    for place, variable in kept.items():
        found[part_of(makers[place]) or REST] += array_bytes(variable.aval)
    return found


def part_of(equation: core.JaxprEqn) -> str:
    """The part of the model that an equation was traced in, forwards or backwards; "" for none."""
    traceback = equation.source_info.traceback
    if traceback is None:
        return ""
    frames = traceback.frames
    files = {frame.file_name.rpartition("/")[2] for frame in frames}
    methods = {frame.function_name.rpartition(".")[2] for frame in frames}
    named = [part for file, part in FILES.items() if file in files]
    named += [part for method, part in METHODS.items() if method in methods]
    return named[0] if named else ""


def _alone(config: Config, batch_size: int, parts: int) -> Config:
    """The run on one device."""
    train = dataclasses.replace(config.train, batch_size=batch_size, accumulate=parts)
    return dataclasses.replace(config, train=train, data_parallel=1, model_parallel=1, replicas=0)
