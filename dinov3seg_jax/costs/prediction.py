"""What it costs to label pictures with lists of names, before there are weights, pictures or devices.

The programs are those of `inference.segmenter`; each device labels its own pictures, and none waits for others. Reading
and resizing pictures, and bringing scores to a picture's own size, are left out.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov3seg_jax.config import Config
from dinov3seg_jax.costs.hlo import Program
from dinov3seg_jax.costs.memory import Reading, array_bytes, peak
from dinov3seg_jax.costs.roofline import bound
from dinov3seg_jax.costs.step_memory import part_of
from dinov3seg_jax.costs.topology import compile_for, slice_devices
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS, EVAL
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.classes.chunks import plan_chunks
from dinov3seg_jax.inference.classes.programs import common_arguments, head_functions
from dinov3seg_jax.inference.device.precision import KERNEL, TABLE, at_precision
from dinov3seg_jax.inference.device.sharing import PICTURES, on_own_pictures
from dinov3seg_jax.inference.recipes import describe_inference
from dinov3seg_jax.inference.views.local_global import check_inference
from dinov3seg_jax.models.chunked import can_chunk, kept_bytes, no_sums
from dinov3seg_jax.models.graph import ALL_FROZEN, bind, build
from dinov3seg_jax.models.parameters import AbstractParameters
from dinov3seg_jax.models.quantized import SCALE
from dinov3seg_jax.models.scene import Chunk
from dinov3seg_jax.training.chips import find_chip
from dinov3seg_jax.training.flops import count_traced

MEND = "set a smaller --batch_size or --config.inference.class_chunk"


class Part(NamedTuple):
    """A program that runs for a batch of pictures."""

    name: str  # a field of `HeadPrograms`
    times: int  # for one batch
    arguments: tuple[Any, ...]  # described
    static: dict[str, Any]
    result: Any  # described


@dataclass(frozen=True)
class Cost:
    """Of one run of a program on a device: operations, bytes beside the parameters, seconds at best."""

    flops: float
    held: int
    seconds: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, max(self.held, other.held), self.seconds + other.seconds)


@dataclass(frozen=True)
class ListCost:
    """Of a batch of pictures with a list of names, on a device."""

    names: int
    length: int  # names that pass the head together
    cost: Cost


def plan_prediction(
    config: Config, lists: Sequence[int], topology: str = "", batch_size: int = 1, benchmark: str = ""
) -> None:
    """Print what a device holds and computes for pictures, and with a slice how many a second at best.

    Args:
        config: of the run; `inference` says how pictures are segmented.
        lists: numbers of names.
        topology: compile the programs for a slice of TPUs, as in "v5e:2x4"; "": read their traces.
        batch_size: pictures that a device labels together.
        benchmark: a row of `BENCHMARKS`, whose names and pictures are meant; "": none.

    Raises:
        UserError: the model's programs cannot be planned, the slice is unknown, or something does not fit it.
    """
    refuse_others(config)
    lists = [len(BENCHMARKS[benchmark].names)] if benchmark else lists
    config, parameters = described_model(config)
    mesh = Mesh(np.asarray(slice_devices(topology)), (PICTURES,)) if topology else None
    devices = mesh.size if mesh else 1
    size, held = config.inference.image_size, sum(map(array_bytes, parameters.values()))
    print(describe_inference(config.inference))
    print(f"{batch_size} picture(s) of {size} x {size} at once on each of {devices} device(s)")
    print(f"  parameters                {held / 1e9:8.2f} GB a device")
    print(f"  embedding of a name, once {_text_flops(config, parameters) / 1e9:8.2f} GFLOP", flush=True)
    head = f"{'names':>6s} {'at once':>8s} {'TFLOP a picture':>16s} {'GB a device':>12s}"
    print(head + (f" {'ms a batch':>11s} {'pictures/s':>11s}" if topology else ""))
    compiled: dict[str, Cost] = {}
    for found in costs(config, parameters, lists, topology, mesh, batch_size, compiled):
        flops, memory = found.cost.flops / batch_size / 1e12, (held + found.cost.held) / 1e9
        row = f"{found.names:6d} {found.length:8d} {flops:16.3f} {memory:12.2f}"
        if topology:
            rate = devices * batch_size / found.cost.seconds
            row += f" {found.cost.seconds * 1e3:11.1f} {rate:11.1f}"
        print(row, flush=True)
        if topology and benchmark:
            pictures = BENCHMARKS[benchmark].splits[EVAL].files[0]
            print(f"{BENCHMARKS[benchmark].title}: {pictures:,} pictures in {pictures / rate / 60:.1f} minutes at best")
    if topology:
        print("at best: each operation takes its slowest resource, one after the other (docs/pods.md)")
    print("nothing was allocated, read or written")


def refuse_others(config: Config) -> None:
    """Stop where the programs are not those of `inference.classes.programs`.

    Raises:
        UserError: it says which option does not fit.
    """
    if config.model.linear.classes or config.model.cafedino.layers:
        raise UserError("plan --predict counts the head with names; it knows no linear head and no CAFe-DINO.")
    if config.inference.resize == "catseg" or not can_chunk(config.model):
        raise UserError(
            "plan --predict counts lists a few names at a time, which inference.resize 'catseg', softmax class "
            "attention and model.late.max_classes do not allow; leave these out."
        )
    check_inference(config.inference, config.model.vision.patch_size)


def described_model(config: Config) -> tuple[Config, AbstractParameters]:
    """Config and parameters as a segmenter holds them."""
    _, parameters = build(config.model, ALL_FROZEN)
    weights = config.inference.weights
    config, _ = at_precision(config, {})
    described: dict[str, Any] = {}
    for name, leaf in parameters.items():
        described[name] = leaf
        if weights != "float32" and name.endswith((KERNEL, TABLE)):
            described[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.int8 if weights == "int8" else jnp.bfloat16)
            if weights == "int8":
                axis = len(leaf.shape) - (1 if name.endswith(TABLE) else 2)
                shape = tuple(1 if place == axis else side for place, side in enumerate(leaf.shape))
                described[name + SCALE] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return config, described


def costs(
    config: Config,
    parameters: AbstractParameters,
    lists: Sequence[int],
    topology: str,
    mesh: Mesh | None,
    batch_size: int,
    known: dict[str, Cost],
) -> Iterator[ListCost]:
    """The cost of each list, as soon as it is known; programs that lists share are counted once, in `known`."""
    platform = "tpu" if topology else jax.default_backend()
    for names in lists:
        length, kept, run = parts(config, parameters, names, batch_size, platform)
        total = Cost(0, 0)
        for part in run:
            key = f"{part.name} {part.arguments[1:]} {part.static}"
            if key not in known:
                known[key] = _compiled(config, part, topology, mesh) if mesh else _traced(config, part)
            one = known[key]
            total += Cost(part.times * one.flops, one.held, part.times * one.seconds)
        yield ListCost(names, length, Cost(total.flops, total.held + kept, total.seconds))


def parts(
    config: Config, parameters: AbstractParameters, names: int, batch_size: int, platform: str
) -> tuple[int, int, list[Part]]:
    """Names that pass the head together, bytes of the maps that are kept of all, and the programs of a batch."""
    functions, options, late = head_functions(config), config.inference, config.model.late
    size = options.image_size
    pictures = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
    found: list[Part] = []

    def run(name: str, times: int, *arguments: Any, **static: Any) -> Any:
        result = jax.eval_shape(partial(getattr(functions, name), **static), *arguments)
        found.append(Part(name, times, arguments, static, result))
        return result

    scenes = run("start", 1, parameters, pictures)
    width = _embedding(config, parameters).shape[-1]
    kept_names = min(options.best_classes or names, names)
    cells = sum(int(np.prod(scene.refined.shape[:3])) for scene in scenes)
    length, keep = plan_chunks(config, cells, kept_names, platform)
    chunks = -(-kept_names // length)
    logits = []
    for scene in scenes:
        rows = len(scene.refined) if options.best_classes else 1
        described: Any = jax.ShapeDtypeStruct((rows, length, width), jnp.float32)
        mask: Any = jax.ShapeDtypeStruct((rows, length), jnp.bool_)
        chunk = Chunk(described, mask)
        sums: tuple[Any, ...] = ()
        maps = None
        for _ in range(late.layers if late.enabled else 0):
            nothing = jax.eval_shape(partial(no_sums, late), scene)
            maps, total = run("collect", chunks, parameters, scene, chunk, sums, maps, nothing, keep=keep)
            sums = (*sums, total)
        logits.append(run("decode", chunks, parameters, scene, chunk, sums, maps))
    if len(logits) > 1:
        run("blend", chunks, *logits, size=(size, size))
    return length, kept_bytes(config.model, chunks * length, cells) if keep else 0, found


def _traced(config: Config, part: Part) -> Cost:
    function = getattr(head_functions(config), part.name)
    traced = jax.make_jaxpr(partial(function, **part.static))(*part.arguments)
    made = peak(traced.jaxpr, Reading(part_of, platform=jax.default_backend())).total()
    return Cost(count_traced(traced), _given(function, part) + made)


def _compiled(config: Config, part: Part, topology: str, mesh: Mesh) -> Cost:
    """Of one device: what it computes is traced for it alone, and compiled with all others beside it."""
    names, function = (getattr(of(config), part.name) for of in (common_arguments, head_functions))
    shared = partial(on_own_pictures(mesh, names)(function), **part.static)
    traced = jax.jit(shared).trace(*_on_all(function, part, names, mesh.size))
    compiled, text = compile_for(topology, traced, f"labelling pictures ({part.name})", MEND)
    memory = compiled.memory_analysis()
    chip = find_chip(mesh.devices.flat[0].device_kind)
    assert chip is not None
    seconds = bound(Program(text), chip).seconds
    held = _given(function, part) + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Cost(count_traced(traced.jaxpr) / mesh.size, held, seconds)


def _on_all(function: Any, part: Part, common: Sequence[str], devices: int) -> list[Any]:
    """The arguments of all devices together."""

    def wider(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((devices * leaf.shape[0], *leaf.shape[1:]), leaf.dtype)

    named = _named(function, part).items()
    return [argument if name in common else jax.tree.map(wider, argument) for name, argument in named]


def _named(function: Any, part: Part) -> dict[str, Any]:
    return dict(zip(inspect.signature(function).parameters, part.arguments, strict=False))  # static ones come last


def _given(function: Any, part: Part) -> int:
    """Bytes of the arguments, without the parameters."""
    held = [argument for name, argument in _named(function, part).items() if name != "parameters"]
    return sum(map(array_bytes, jax.tree.leaves(held)))


def _embedding(config: Config, parameters: AbstractParameters) -> Any:
    """Described, of one prompt."""
    return jax.eval_shape(partial(_encode, config), parameters, _prompt(config))


def _text_flops(config: Config, parameters: AbstractParameters) -> int:
    traced = jax.make_jaxpr(partial(_encode, config))(parameters, _prompt(config))
    return len(config.inference.templates) * count_traced(traced)


def _encode(config: Config, parameters: Any, tokens: Any) -> jax.Array:
    return bind(build(config.model, ALL_FROZEN)[0], parameters).encode_text(tokens)


def _prompt(config: Config) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, config.model.text.context_length), jnp.int32)
