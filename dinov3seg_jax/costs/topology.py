"""The real step, compiled for slices of TPUs that are not there: does it fit, and what bounds it."""

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinov3seg_jax.config import Config
from dinov3seg_jax.costs.hlo import Program, Traffic
from dinov3seg_jax.costs.roofline import MATRIX, Bound, bound
from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.training.chips import Chip, find_chip
from dinov3seg_jax.training.flops import count_traced
from dinov3seg_jax.training.program import describe_step, model_flops
from dinov3seg_jax.training.sharding import make_mesh

FILES_SHOWN = 6
WORTH, ROOM = 0.01, 0.8  # of a chip's memory: advice is given for more than this, and to fill no more than that


@dataclass(frozen=True)
class Estimate:
    """What one step costs one chip. Bytes, operations, seconds."""

    topology: str
    kind: str
    chips: int
    chip: Chip
    examples: float  # each chip's share of the batch
    compile_seconds: float
    held: int  # arguments: parameters, optimiser state, batch
    temporary: int
    flops: float  # all matrix products, those done again to save memory included
    model_flops: float  # without those
    traffic: Traffic
    bound: Bound  # of its operations, one after the other

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that each resource needs at its best rate."""
        return {
            "arithmetic": self.flops / self.chip.flops,
            "memory": self.traffic.memory / self.chip.bandwidth,
            "interconnect": self.traffic.load / self.chip.interconnect,
        }

    @property
    def bound_by(self) -> str:
        """The resource that needs longest."""
        return max(self.bounds, key=lambda name: self.bounds[name])

    @property
    def utilisation(self) -> float:
        """The model's operations against the peak, if all else is hidden behind the resource that needs longest."""
        return self.model_flops / self.chip.flops / max(self.bounds.values())

    @property
    def honest_utilisation(self) -> float:
        """The same, if every operation takes its own slowest resource and one runs after the other."""
        return self.model_flops / self.chip.flops / self.bound.seconds


def topology_mesh(config: Config, topology: str) -> Mesh:
    """The mesh of a run on a slice.

    Args:
        config: its `data_parallel`, `model_parallel` and `replicas`.
        topology: generation and shape, as in "v5e:16x16".

    Raises:
        UserError: as `slice_devices`, or the config does not fit the slice.
    """
    return make_mesh(config.data_parallel, config.model_parallel, slice_devices(topology), config.replicas)


def slice_devices(topology: str) -> Any:
    """The chips of a slice, which are not there.

    Raises:
        UserError: there is no TPU compiler here, or it does not know the slice, or we do not know its chips.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks a cloud's metadata server first
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a compiler alone holds no chip that it could lock
    from jax.experimental import topologies

    try:
        devices: Any = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # whatever the plugin raises; it is no part of JAX
        raise UserError(
            f"--topology {topology} cannot be compiled for ({reason(error)[:200]}); name a slice as in v5e:4x4, and "
            "install the compiler with: pip install libtpu"
        ) from error
    if find_chip(devices[0].device_kind) is None:
        raise UserError(
            f"--topology {topology} has {devices[0].device_kind} chips, whose peaks are not known; name a slice of v4, "
            "v5e, v5p or v6e, as in v5e:4x4."
        )
    return devices


def compile_for(topology: str, traced: Any, what: str, mend: str) -> tuple[Any, str]:
    """The program, and its text as the compiler writes it: JAX does not read everything back that a newer one makes.

    Args:
        topology: the slice that it was traced for.
        traced: of a jitted function.
        what: is compiled, and `mend`, what helps if it does not fit: for the message.

    Raises:
        UserError: it does not fit the memory of a chip.
    """
    try:
        return _compile(traced.lower())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = next((line for line in str(error).splitlines() if "Used" in line), error)
        raise UserError(f"{what} does not fit the memory of {topology} ({one_line(used, 200)}); {mend}.") from error


def _compile(lowered: Any) -> tuple[Any, str]:
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        texts = Path(folder).glob("*.after_optimizations.txt")
        return compiled, max(texts, key=lambda path: path.stat().st_size).read_text()


def estimate(config: Config, topology: str, names: Any, batch: Any) -> Estimate:
    """Compile the step for a slice and add up what it takes.

    Args:
        config: of the run; `train.batch_size` is of all chips together.
        topology: as for `topology_mesh`.
        names: token ids of the class names.
        batch: described, as by `step_memory.abstract_batch`.

    Raises:
        UserError: as `topology_mesh`, or the compiler refuses the step: it does not fit.
    """
    mesh = topology_mesh(config, topology)
    program = describe_step(config, mesh)
    tokens = program.described_names(jax.ShapeDtypeStruct(np.shape(names), np.int32))
    arguments = (program.state, program.frozen, tokens, batch)
    traced = program.step.trace(*arguments)
    started = time.perf_counter()
    mend = "set a smaller --config.train.batch_size, or name a larger slice"
    compiled, text = compile_for(topology, traced, "the step", mend)
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    kind = mesh.devices.flat[0].device_kind
    chip = find_chip(kind)
    assert chip is not None
    read = Program(text, [device.coords for device in mesh.devices.flat])
    return Estimate(
        topology,
        kind,
        mesh.size,
        chip,
        config.train.batch_size / mesh.size,
        seconds,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        count_traced(traced.jaxpr) / mesh.size,
        model_flops(config, program, traced.jaxpr, arguments) / mesh.size,
        read.traffic(),
        bound(read, chip),
    )


def describe(found: Estimate) -> str:
    """The estimate as a paragraph of lines."""
    chip, bounds, traffic = found.chip, found.bounds, found.traffic
    lines = [
        f"{found.topology}: {found.chips} chips ({found.kind}), {found.examples:g} crops each; "
        f"compiled in {found.compile_seconds:.0f} s",
        f"  memory a chip     {(found.held + found.temporary) / 1e9:8.2f} of {chip.memory / 1e9:.0f} GB: "
        f"{found.held / 1e9:.2f} parameters, state and batch, {found.temporary / 1e9:.2f} temporaries",
        f"  arithmetic        {found.flops / 1e12:8.3f} TFLOP  {bounds['arithmetic'] * 1e3:8.1f} ms at best; "
        f"{found.model_flops / 1e12:.3f} TFLOP without what is done again to save memory",
        f"  memory traffic    {traffic.memory / 1e9:8.2f} GB     {bounds['memory'] * 1e3:8.1f} ms at best",
        f"  interconnect      {traffic.sent / 1e9:8.2f} GB     {bounds['interconnect'] * 1e3:8.1f} ms at best",
    ]
    lines += [
        f"    {kind:16s} {count:6.0f} with {size / 1e9:8.3f} GB" for kind, (count, size) in traffic.by_kind().items()
    ]
    largest = sorted(traffic.by_file.items(), key=lambda row: -row[1])[:FILES_SHOWN]
    lines.append("  memory traffic by part: " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in largest))
    lines.append(
        f"  bound by {found.bound_by}: at best {max(bounds.values()) * 1e3:.1f} ms a step, "
        f"{found.utilisation:.0%} of the chips' peak, if all else is hidden behind it"
    )
    lines.append(f"{describe_bound(found.bound)}, {found.honest_utilisation:.0%} of the chips' peak")
    return "\n".join(lines)


def advise(found: Estimate, elsewhere: int) -> str:
    """What spares a step the gathering of frozen parameters, where they are large and a chip has room; else "".

    Args:
        found: for the step as it is.
        elsewhere: bytes of frozen parameters that a chip does not hold.
    """
    needed = found.held + found.temporary + elsewhere
    if elsewhere < WORTH * found.chip.memory or needed > ROOM * found.chip.memory:
        return ""
    return (
        "frozen parameters are gathered in each step; --config.fsdp_frozen=False holds all of them on every chip, "
        f"with {needed / 1e9:.0f} of {found.chip.memory / 1e9:.0f} GB in use"
    )


def describe_bound(found: Bound) -> str:
    """Its lines, the total last."""
    lines = ["  operations wait for: " + _longest(found.by_resource)]
    if found.by_resource.get(MATRIX):
        lines.append(f"    the matrix unit's part that is not filled, and float32: {_ms(found.unfilled)}")
    lines.append("  time by part: " + _longest(found.by_file))
    if found.silent:
        lines.append(
            f"    {found.silent:g} runs of kernels do not say what they compute, and count their traffic alone"
        )
    lines.append(f"  operation by operation: at best {_ms(found.seconds)}")
    return "\n".join(lines)


def _longest(seconds: Mapping[str, float]) -> str:
    rows = sorted(seconds.items(), key=lambda row: -row[1])[:FILES_SHOWN]
    return ", ".join(f"{name} {_ms(each)}" for name, each in rows)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
