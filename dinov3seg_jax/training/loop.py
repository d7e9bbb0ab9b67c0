"""The training run (§6): data, step, logs, checkpoints."""

import contextlib
import dataclasses
import functools
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jaxtyping import Int

from dinov3seg_jax.config import Config
from dinov3seg_jax.data.balance import for_rare_classes
from dinov3seg_jax.data.captions import Captions
from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.data.held_out import open_training
from dinov3seg_jax.data.pipeline import Batches, StreamKind, refuse_other_stream, train_iterator
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded
from dinov3seg_jax.models.low_rank import merge
from dinov3seg_jax.places import check_writable
from dinov3seg_jax.processes import check_once, is_first, say
from dinov3seg_jax.store.run import RunFolder, write_config
from dinov3seg_jax.text.prompts import training_prompts
from dinov3seg_jax.training.agreement import mean_iou
from dinov3seg_jax.training.average import exchange
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.chips import peak_flops
from dinov3seg_jax.training.clock import Clock
from dinov3seg_jax.training.data_check import DataCheck
from dinov3seg_jax.training.extent import extent
from dinov3seg_jax.training.finetune import join
from dinov3seg_jax.training.lease import Lease, leased
from dinov3seg_jax.training.linear_probe import check_linear
from dinov3seg_jax.training.logs import Logs, all_finite
from dinov3seg_jax.training.preemption import Stopped, StopSignals
from dinov3seg_jax.training.profiling import Profiler
from dinov3seg_jax.training.program import (
    CompiledStep,
    StepProgram,
    describe_step,
    model_flops,
    refuse_misfits,
    refuse_uneven_batches,
)
from dinov3seg_jax.training.resume import Beginning, refuse_other_run, take_up
from dinov3seg_jax.training.sharding import data_share, make_mesh
from dinov3seg_jax.training.start import with_tokenizer
from dinov3seg_jax.training.step import Batch
from dinov3seg_jax.training.trackers import refuse_missing_libraries
from dinov3seg_jax.training.validation import Validation, Validator, refuse_vain_scoring

TOWERS_FOLDER = "towers"
BACKBONE_FOLDER = "backbone"


def train(config: Config, make_validator: Callable[[Config], Validator] | None = None) -> Path:
    """Train, or continue, and return the run's folder.

    A run is resumed by starting it again: the order of precedence is the newest step in `workdir`, then the weights
    that `init_from` names, then towers trained for `train.alignment_steps` in `workdir`/towers, then random weights.

    Args:
        config: of the run.
        make_validator: scores the weights every `train.eval_every` steps; see `evaluation.validation.train`.

    Raises:
        UserError: the data cannot be read or say nothing, `workdir` belongs to another run, a loss is not finite, or a
            checkpoint cannot be written or none is whole.
        Stopped: a signal came; what was done is saved.
    """
    workdir = expanded(config.workdir)
    config = with_tokenizer(config)
    refuse_missing_libraries(config.train.trackers, workdir)
    check_once(functools.partial(check_writable, workdir))
    refuse_other_run(workdir, config)
    refuse_vain_scoring(config.train)
    dataset = open_training(config.data)
    checked = DataCheck(config, dataset)
    validator = None
    if config.train.eval_every:
        if make_validator is None:
            raise ValueError("train.eval_every needs a validator; call dinov3seg_jax.train")
        validator = make_validator(config)
    dataset = for_rare_classes(dataset, config.data.balance, config.train.class_weights)
    before = runs_before(config)
    for one in (*before, config):
        _refuse_unfit(one, dataset)
    seconds = 0.0
    with leased(workdir) as lease:
        for one in before:
            run = _run(one, dataset, checked, seconds, None, lease, home=workdir)
            seconds = RunFolder(run).progress()["train_seconds"]
            config = dataclasses.replace(config, init_from=str(run))
        return _run(config, dataset, checked, seconds, validator, lease)


def _refuse_unfit(config: Config, dataset: Dataset) -> None:
    """Stop before a run leaves a file that its devices or its data set do not fit.

    Raises:
        UserError: it names the options.
    """
    if config.model.linear.classes:
        check_linear(config, len(dataset.classes))
    refuse_uneven_batches(config, make_mesh(config.data_parallel, config.model_parallel, replicas=config.replicas))
    refuse_misfits(config)


def runs_before(config: Config) -> list[Config]:
    """The runs that stand in for pre-training, each of which goes on from the one before; often none."""
    if config.init_from:
        return []
    train, before = config.train, []
    captions = train.objective == "captions" or (train.alignment_steps and train.alignment_by == "captions")
    if captions and train.backbone_steps:
        before.append(backbone_alone(config))
    if train.alignment_steps:
        before.append(dataclasses.replace(towers_alone(config), init_from=before[-1].workdir if before else ""))
    return before


def backbone_alone(config: Config) -> Config:
    """The run that stands in for DINOv3's pre-training, before the one on captions [ours]."""
    steps = config.train.backbone_steps
    return _before(config, BACKBONE_FOLDER, objective="patches", steps=steps, backbone_steps=0, finetune="backbone")


def towers_alone(config: Config) -> Config:
    """The run that stands in for dinov3.txt's pre-training, where a run has no weights to start from [ours]."""
    train = config.train
    by_captions = train.alignment_by == "captions"
    objective = "captions" if by_captions else "alignment"
    finetune = "head" if by_captions and train.backbone_steps else "full"
    return _before(config, TOWERS_FOLDER, objective=objective, steps=train.alignment_steps, finetune=finetune)


def _before(config: Config, folder: str, objective: Any, **changes: Any) -> Config:
    train = config.train
    options = dataclasses.replace(
        train,
        objective=objective,
        batch_size=train.alignment_batch or train.batch_size,
        accumulate=train.accumulate if objective == "alignment" else 1,  # the others tell a batch's examples apart
        alignment_steps=0,
        eval_every=0,
        eval_patience=0,
        encoder_lr_scale=1.0,
        **changes,
    )
    return dataclasses.replace(config, workdir=str(expanded(config.workdir) / folder), train=options)


class Surroundings(NamedTuple):
    """What a run reads from, writes to and listens for, while it trains."""

    batches: Batches
    stream: StreamKind  # that they are of
    checkpoints: Checkpoints
    logs: Logs
    clock: Clock
    profiler: Profiler
    signals: StopSignals


def _run(
    config: Config,
    dataset: Dataset,
    checked: DataCheck,
    seconds_before: float,
    validator: Validator | None,
    lease: Lease,
    home: Path | None = None,
) -> Path:
    workdir = expanded(config.workdir)
    refuse_other_run(workdir, config)
    mesh = make_mesh(config.data_parallel, config.model_parallel, replicas=config.replicas)
    names = training_prompts(dataset.classes, config)
    program = describe_step(config, mesh)
    if is_first():
        write_config(workdir, config)
        checked.write(workdir)
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints, home, lease.confirm)
    beginning = take_up(config, program, checkpoints, seconds_before)
    start = int(beginning.state.step)
    validation = Validation(config.train, validator, workdir, start)
    over = start >= config.train.steps or validation.is_over
    if over and not validation.is_due(start):
        checkpoints.close()
        trained = f"{workdir} is trained already ({start} steps); raise train.steps to go on"
        say(validation.why_over() if validation.is_over else trained)
        return workdir
    checkpoints.share(beginning.frozen)
    sees = extent(config.train, len(dataset.source))
    say(f"training {workdir} from step {start} to {config.train.steps} on {jax.device_count()} device(s): {sees}")
    with _surroundings(config, dataset, mesh, checkpoints, beginning) as around:
        stopped = _loop(config, program, names, beginning, around, validation)
    sync_global_devices("saved")  # the first process names the last step when the others are done with it
    stopped = stopped or around.signals.noted
    if stopped is not None:
        say(f"stopped by {stopped.name} and saved; the same command goes on from there")
        raise Stopped(stopped)
    if validation.is_over:
        say(validation.why_over())
    return workdir


def _loop(
    config: Config,
    program: StepProgram,
    names: Int[np.ndarray, "n length"],
    beginning: Beginning,
    around: Surroundings,
    validation: Validation,
) -> signal.Signals | None:
    """Train to the last step, or until a signal; everything up to then is being saved when it returns.

    Args:
        config: of the run.
        program: its step.
        names: token ids of the class names.
        beginning: where to start.
        around: what to read from and write to.
        validation: what scores the weights.

    Returns:
        The signal.
    """
    options = config.train
    state, frozen = beginning.state, beginning.frozen

    def validate(step: int) -> None:
        weights = merge(join(exchange(state.trainable, state.optimizer)[0], frozen))  # as a checkpoint's are read
        validation(step, weights, lambda: around.signals.received() is not None, around.logs)

    if validation.is_due(int(state.step)):  # a signal came before this was done
        validate(int(state.step))
        if int(state.step) >= options.steps or validation.is_over:
            return None
    started = time.perf_counter()
    pending: list[dict[str, jax.Array]] = []
    names = jax.device_put(program.names(state.trainable, frozen, names), program.shardings.names)
    compiled = None
    for step in itertools.count(int(state.step) + 1):
        with around.clock.waiting():
            batch = _place(next(around.batches), program.shardings.batch)
        if compiled is None:
            compiled = CompiledStep(program.step, state, frozen, names, batch)
            flops = model_flops(config, program, compiled.traced, (state, frozen, names, batch))
            around.logs.know_cost(flops / jax.device_count(), peak_flops(jax.local_devices()[0].device_kind))
            around.clock.start()
            around.signals.listen()
        around.profiler.before(step)
        state, metrics = compiled(state, frozen, names, batch)
        around.profiler.after(step, metrics)
        pending.append(metrics)
        around.logs.advance()
        stopped = around.signals.received()
        if stopped is None and validation.is_due(step):
            jax.block_until_ready(metrics)  # the time until here is the step's
            with around.clock.outside():
                validate(step)
            stopped = around.signals.noted
        last = step == options.steps or validation.is_over
        if last or step % options.log_every == 0:
            _log(step, pending, around)
            pending = []
        if last or stopped is not None or step % options.checkpoint_every == 0 or validation.is_best(step):
            seconds = beginning.seconds + time.perf_counter() - started
            progress = {"data": {"stream": dataclasses.asdict(around.stream)}, "train_seconds": seconds}
            progress["step_seconds"] = around.clock.in_steps
            with around.clock.outside():
                around.logs.keep()
                trainable, optimizer = exchange(state.trainable, state.optimizer)
                around.checkpoints.save(step, trainable, optimizer, progress)
        around.checkpoints.check()
        if last or stopped is not None:
            return stopped
    return None  # not reached: steps are counted for ever


def _log(step: int, pending: list[dict[str, jax.Array]], around: Surroundings) -> None:
    """Record the means of some steps.

    Raises:
        UserError: one of them is not finite.
    """
    fetched = jax.device_get(pending)
    interval = around.clock.interval()
    counts = [entry.pop("counts") for entry in fetched if "counts" in entry]
    means = {name: float(np.mean([entry[name] for entry in fetched])) for name in fetched[0]}
    if not all_finite(means):
        raise UserError(
            f"the loss became NaN or infinite somewhere in steps [{step - len(pending) + 1}, {step}]; "
            "lower train.learning_rate or look at the data, and start again from the last checkpoint."
        )
    if counts and math.isfinite(iou := mean_iou(np.sum(counts, axis=0))):
        means["train_miou"] = iou
    means |= {"learning_rate": float(fetched[-1]["learning_rate"]), "goodput": around.clock.goodput}
    around.logs.write(step, means, interval.steps / len(pending), interval.data_wait / interval.steps)


@contextlib.contextmanager
def _surroundings(
    config: Config, dataset: Dataset, mesh: jax.sharding.Mesh, checkpoints: Checkpoints, beginning: Beginning
) -> Iterator[Surroundings]:
    """Open everything, and close it however the run ends."""
    with contextlib.ExitStack() as closing:
        signals = StopSignals()
        closing.callback(signals.close)  # last: until then the last step is being written
        closing.callback(checkpoints.close)
        done = int(beginning.state.step)
        logs = Logs(config, done)
        closing.callback(logs.close)
        stream = StreamKind(config.train.batch_size, len(dataset.source))
        refuse_other_stream(beginning.stream, stream)
        part, parts = data_share(mesh)
        share = stream.batch_size // parts
        captions = Captions(dataset.classes, config.model) if config.train.objective == "captions" else None
        batches = train_iterator(dataset, config.data, share, config.seed, part, parts, done, captions)
        closing.callback(batches.close)
        profiler = Profiler(expanded(config.workdir), *config.train.profile_steps)
        closing.callback(profiler.close)
        clock = Clock(beginning.step_seconds, logs.began)
        yield Surroundings(batches, stream, checkpoints, logs, clock, profiler, signals)


def _place(batch: dict[str, np.ndarray], sharding: jax.sharding.NamedSharding) -> Batch:
    return Batch(**{name: jax.make_array_from_process_local_data(sharding, field) for name, field in batch.items()})
