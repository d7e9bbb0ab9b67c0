"""The training run (§6): data, step, logs, checkpoints, resume."""

import dataclasses
import itertools
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import sync_global_devices

from dinov3seg_jax.config import Config
from dinov3seg_jax.data.datasets import Dataset, open_dataset
from dinov3seg_jax.data.pipeline import train_iterator
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import build
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.processes import say
from dinov3seg_jax.text.prompts import prompt_tokens
from dinov3seg_jax.training.average import exchange
from dinov3seg_jax.training.checkpoint import (
    CONFIG_FILE,
    Checkpoints,
    read_config,
    read_progress,
    write_config,
)
from dinov3seg_jax.training.chips import peak_flops
from dinov3seg_jax.training.finetune import frozen_blocks, join, partition
from dinov3seg_jax.training.flops import as_counted, count_flops, count_traced
from dinov3seg_jax.training.linear_probe import check_linear
from dinov3seg_jax.training.logs import Logs, all_finite
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.preemption import Stopped, StopSignals
from dinov3seg_jax.training.profiling import Profiler
from dinov3seg_jax.training.program import CompiledStep
from dinov3seg_jax.training.sharding import (
    DATA,
    batch_sharding,
    data_share,
    like_parameters,
    make_mesh,
    on_mesh,
    parameter_shardings,
    replicated,
)
from dinov3seg_jax.training.start import first_parameters
from dinov3seg_jax.training.step import Batch, TrainState, make_train_step

TOWERS_FOLDER = "towers"

# Options that a run may change when it is resumed; any other would make it another run.
RESUMABLE = {
    "train": {"steps", "log_every", "checkpoint_every", "keep_checkpoints", "profile_steps"},
    "data": {"eval"},
    "": {
        "inference",
        "zero_shot",
        "workdir",
        "init_from",
        "data_parallel",
        "model_parallel",
        "fsdp_bytes",
        "fsdp_frozen",
        "benchmarks",
        "report_images",
    },
}


class Run(NamedTuple):
    """A training step ready to be called, and what it is called with."""

    step: Any  # (state, frozen, names, batch) -> (state, metrics)
    shardings: tuple[Any, Any, Any, Any]  # of the step's arguments
    graph: nnx.GraphDef
    abstract: tuple[TrainState, Parameters]


def prepare(config: Config, mesh: jax.sharding.Mesh) -> Run:
    """Trace nothing and allocate nothing: shapes, shardings and the jitted step."""
    graph, described = build(config.model, frozen_blocks(config.model, config.train))
    trainable, frozen = jax.eval_shape(lambda p: partition(p, config.model, config.train), described)
    optimizer = make_optimizer(config.train)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), trainable, jax.eval_shape(optimizer.init, trainable))
    by_name = parameter_shardings(trainable, mesh, config.fsdp_bytes)
    state_shardings = TrainState(replicated(mesh), by_name, like_parameters(state.optimizer, by_name, mesh))
    frozen_shardings = parameter_shardings(frozen, mesh, config.fsdp_bytes if config.fsdp_frozen else sys.maxsize)
    shardings = (state_shardings, frozen_shardings, replicated(mesh), batch_sharding(mesh))

    step = jax.jit(
        on_mesh(make_train_step(config, graph, optimizer, by_name), mesh),
        in_shardings=shardings,
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return Run(step, shardings, graph, (state, frozen))


def model_flops(config: Config, run: Run, traced: Any, arguments: tuple[Any, ...]) -> int:
    """Floating-point operations of a step of the model, those counted once that are done again to save memory.

    Args:
        config, run: of the step; `run` is of `prepare`.
        traced: the step's jaxpr, which says it where nothing is recomputed.
        arguments: of the step, as they are or described.
    """
    plain = dataclasses.replace(config, model=as_counted(config.model))
    if plain == config:
        return count_traced(traced)
    return count_flops(prepare(plain, run.shardings[2].mesh).step, *arguments)


def train(config: Config) -> Path:
    """Train, or continue, and return the run's folder.

    A run is resumed by starting it again: the order of precedence is the newest step in `workdir`, then the weights
    that `init_from` names, then towers trained for `train.alignment_steps` in `workdir`/towers, then random weights.

    Raises:
        UserError: the data cannot be read, `workdir` belongs to another run, a loss is not finite, or a checkpoint
            cannot be written or none is whole.
        Stopped: a signal came; what was done is saved.
    """
    seconds = 0.0
    if config.train.alignment_steps and not config.init_from:
        refuse_other_run(Path(config.workdir), config)  # before the towers take their minutes
        towers = _run(towers_alone(config), seconds)
        seconds = read_progress(towers)["train_seconds"]
        config = dataclasses.replace(config, init_from=str(towers))
    return _run(config, seconds)


def towers_alone(config: Config) -> Config:
    """The run that stands in for dinov3.txt's pre-training, where a run has no weights to start from [ours]."""
    options = dataclasses.replace(
        config.train,
        objective="alignment",
        steps=config.train.alignment_steps,
        alignment_steps=0,
        finetune="full",
        encoder_lr_scale=1.0,
    )
    return dataclasses.replace(config, workdir=str(Path(config.workdir) / TOWERS_FOLDER), train=options)


def _run(config: Config, seconds_before: float) -> Path:
    workdir = Path(config.workdir)
    refuse_other_run(workdir, config)
    dataset = open_dataset(config.data.train)
    if config.model.linear.classes:
        check_linear(config, len(dataset.classes))
    mesh = make_mesh(config.data_parallel, config.model_parallel)
    if config.train.batch_size % (mesh.shape[DATA] * config.train.accumulate):
        parts = f" in {config.train.accumulate} parts" if config.train.accumulate > 1 else ""
        raise UserError(
            f"train.batch_size {config.train.batch_size} cannot be shared out over {mesh.shape[DATA]} devices{parts}; "
            "make it a multiple."
        )
    names = prompt_tokens(dataset.classes, config.inference.templates[:1], config.model.text.context_length)[:, 0]
    run = prepare(config, mesh)
    if jax.process_index() == 0:
        write_config(workdir, config)
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    state, frozen, progress = _first_state(config, run, checkpoints, seconds_before)
    start = int(state.step)
    if start >= config.train.steps:
        checkpoints.close()
        say(f"{workdir} is trained already ({start} steps); raise train.steps to go on")
        return workdir
    batches = _batches(config, dataset, mesh, progress)
    say(f"training {workdir} from step {start} to {config.train.steps} on {jax.device_count()} device(s)")
    logs = Logs(workdir, start, config.train.steps, config.train.batch_size)
    profiler = Profiler(workdir, *config.train.profile_steps)
    signals = StopSignals()
    try:
        stopped = _loop(config, run, checkpoints, logs, profiler, signals, batches, state, frozen, names, progress)
    finally:
        profiler.close()
        batches.close()
        logs.close()
        checkpoints.close()
        signals.close()  # not before: the last step is being written until here
    sync_global_devices("saved")  # the first process names the last step when the others are done with it
    stopped = stopped or signals.noted
    if stopped is not None:
        say(f"stopped by {stopped.name} and saved; the same command goes on from there")
        raise Stopped(stopped)
    return workdir


def _loop(
    config: Config,
    run: Run,
    checkpoints: Checkpoints,
    logs: Logs,
    profiler: Profiler,
    signals: StopSignals,
    batches: Any,
    state: TrainState,
    frozen: Parameters,
    names: np.ndarray,
    progress: dict[str, Any],
) -> signal.Signals | None:
    options = config.train
    started, seconds_before = time.perf_counter(), progress["train_seconds"]
    pending: list[dict[str, jax.Array]] = []
    interval_start, waited = time.perf_counter(), 0.0
    names_on_device = jax.device_put(names, run.shardings[2])
    compiled = None
    for step in itertools.count(int(state.step) + 1):
        wait_start = time.perf_counter()
        batch = _place(next(batches), run.shardings[3])
        waited += time.perf_counter() - wait_start
        if compiled is None:
            compiled = CompiledStep(run.step, state, frozen, names_on_device, batch)
            flops = model_flops(config, run, compiled.traced, (state, frozen, names_on_device, batch))
            device = jax.local_devices()[0]
            logs.know_cost(flops / jax.device_count(), peak_flops(device.device_kind))
            interval_start, waited = time.perf_counter(), 0.0
            signals.listen()
        profiler.before(step)
        state, metrics = compiled(state, frozen, names_on_device, batch)
        profiler.after(step, metrics)
        pending.append(metrics)
        logs.advance()
        last = step == options.steps
        if last or step % options.log_every == 0:
            fetched = jax.device_get(pending)
            elapsed = time.perf_counter() - interval_start
            means = {name: float(np.mean([entry[name] for entry in fetched])) for name in fetched[0]}
            if not all_finite(means):
                raise UserError(
                    f"the loss became NaN or infinite somewhere in steps [{step - len(pending) + 1}, {step}]; "
                    "lower train.learning_rate or look at the data, and start again from the last checkpoint."
                )
            logs.write(step, means, elapsed / len(pending), waited / elapsed)
            pending, interval_start, waited = [], time.perf_counter(), 0.0
        stopped = signals.received(step)
        if last or stopped is not None or step % options.checkpoint_every == 0:
            seconds = seconds_before + time.perf_counter() - started
            position = {"data": batches.get_state(), "train_seconds": seconds}
            trainable, optimizer = exchange(state.trainable, state.optimizer)
            checkpoints.save(step, join(trainable, frozen), optimizer, position)
        checkpoints.check()
        if last or stopped is not None:
            return stopped
    return None  # not reached: steps are counted for ever


def _first_state(
    config: Config, run: Run, checkpoints: Checkpoints, seconds_before: float
) -> tuple[TrainState, Parameters, dict[str, Any]]:
    abstract_state, _ = run.abstract
    _, described = build(config.model)
    mesh = run.shardings[2].mesh
    whole = parameter_shardings(described, mesh, config.fsdp_bytes)
    state_shardings, frozen_shardings = run.shardings[:2]

    def split(parameters: Parameters) -> tuple[Parameters, Parameters]:
        trainable, frozen = partition(parameters, config.model, config.train)
        return jax.device_put(trainable, state_shardings.trainable), jax.device_put(frozen, frozen_shardings)

    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole[name]) for name, leaf in described.items()
    }
    placed_optimizer = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state.optimizer,
        state_shardings.optimizer,
    )
    restored = checkpoints.restore(placed, placed_optimizer)
    if restored is not None:
        trainable, frozen = split(restored.parameters)
        step = jax.device_put(np.int32(restored.step), state_shardings.step)
        return TrainState(step, *exchange(trainable, restored.optimizer)), frozen, restored.progress
    trainable, frozen = split(first_parameters(config, whole))
    optimizer = jax.jit(make_optimizer(config.train).init, out_shardings=state_shardings.optimizer)(trainable)
    step = jax.device_put(np.int32(0), state_shardings.step)
    return TrainState(step, trainable, optimizer), frozen, {"data": None, "train_seconds": seconds_before}


def _batches(config: Config, dataset: Dataset, mesh: jax.sharding.Mesh, progress: dict[str, Any]) -> Any:
    part, parts = data_share(mesh)
    iterator = train_iterator(dataset, config.data, config.train.batch_size // parts, config.seed, part, parts)
    if progress["data"] is not None:
        iterator.set_state(progress["data"])
    return iterator


def _place(batch: dict[str, np.ndarray], sharding: jax.sharding.NamedSharding) -> Batch:
    fields = (batch["image"], batch["label"], batch["class_ids"])
    return Batch(*(jax.make_array_from_process_local_data(sharding, field) for field in fields))


def refuse_other_run(workdir: Path, config: Config) -> None:
    """Stop before a run is continued with options that would make it another one.

    Raises:
        UserError: it names the first option that differs.
    """
    if not (workdir / CONFIG_FILE).is_file():
        return
    old, new = (dataclasses.asdict(_without_resumable(c)) for c in (read_config(workdir), config))
    for name, before, after in _differences(old, new):
        raise UserError(
            f"'{workdir}' holds a run with {name}={before!r}, not {after!r}; choose another --config.workdir, "
            "delete that one, or keep its options."
        )


def _without_resumable(config: Config) -> Config:
    plain = Config()
    return dataclasses.replace(
        config,
        train=_reset(config.train, plain.train, RESUMABLE["train"]),
        data=_reset(config.data, plain.data, RESUMABLE["data"]),
        **{name: getattr(plain, name) for name in RESUMABLE[""]},
    )


def _reset(section: Any, plain: Any, names: set[str]) -> Any:
    return dataclasses.replace(section, **{name: getattr(plain, name) for name in names})


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Any:
    for name, before in old.items():
        after = new[name]
        if isinstance(before, dict):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}", before, after
