"""Going on with a run: what it may change, and what it starts or continues from."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import EXPORT_FILE
from dinov3seg_jax.folders import children
from dinov3seg_jax.models.graph import build
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.store.converted import is_converted
from dinov3seg_jax.store.run import STEPS_FOLDER, is_run, read_config
from dinov3seg_jax.training.average import exchange
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.finetune import partition, updates_of
from dinov3seg_jax.training.logs import LOG_FILE
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.program import StepProgram
from dinov3seg_jax.training.sharding import parameter_shardings
from dinov3seg_jax.training.start import first_parameters
from dinov3seg_jax.training.step import TrainState

# Options, and sections of them, that a run may change when it is resumed; any other would make it another run. Those
# that say how the work of a step is computed, shared out or cut into parts change its result by rounding alone.
RESUMABLE = {
    "benchmarks",
    "data.eval",
    "data.workers",
    "data_parallel",
    "fsdp_bytes",
    "fsdp_frozen",
    "fsdp_gather_once",
    "inference",
    "init_from",
    "model.attention",
    "model.decoder.packed",
    "model.decoder.remat",
    "model.early.remat",
    "model.late.class_kernel",
    "model.late.kernel",
    "model.late.remat",
    "model.remat",
    "model.tokenizer",  # a path; the run's folder has a copy
    "model_parallel",
    "replicas",
    "report_images",
    "train.accumulate",
    "train.checkpoint_every",
    "train.eval_every",
    "train.eval_images",
    "train.eval_patience",
    "train.eval_pictures",
    "train.eval_view",
    "train.keep_checkpoints",
    "train.log_every",
    "train.profile_steps",
    "train.steps",
    "train.trackers",
    "workdir",
    "zero_shot",
}


class Beginning(NamedTuple):
    """Where a process takes a run up."""

    state: TrainState
    frozen: Parameters
    stream: dict[str, Any]  # what the checkpoint says of its stream, for `refuse_other_stream`
    seconds: float  # trained so far
    step_seconds: float  # of them in steps


def take_up(config: Config, program: StepProgram, checkpoints: Checkpoints, seconds_before: float) -> Beginning:
    """The newest step of a run, or a new run's first parameters.

    Args:
        config: of the run.
        program: its step.
        checkpoints: of the run.
        seconds_before: that a new run has taken already, for its towers.

    Raises:
        UserError: no step is whole, or a folder that `init_from` names cannot be used.
    """
    at = program.shardings

    def placed(described: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), described, shardings
        )

    restored = checkpoints.restore(
        placed(program.state.trainable, at.state.trainable),
        placed(program.state.optimizer, at.state.optimizer),
        placed(program.frozen, at.frozen),
    )
    if restored is not None:
        step = jax.device_put(np.int32(restored.step), at.state.step)
        state = TrainState(step, *exchange(restored.parameters, restored.optimizer))
        progress = restored.progress
        stream = progress["data"].get("stream", {})  # else of a run from before streams were described
        seconds = progress["train_seconds"]
        # A checkpoint from before these were kept has steps alone to show for its time.
        return Beginning(state, restored.frozen, stream, seconds, progress.get("step_seconds", seconds))
    _, described = build(config.model)
    described |= updates_of(described, config.train)
    first = first_parameters(config, parameter_shardings(described, program.mesh, config.fsdp_bytes))
    trainable, frozen = partition(first, config.model, config.train)
    trainable, frozen = jax.device_put(trainable, at.state.trainable), jax.device_put(frozen, at.frozen)
    optimizer = jax.jit(make_optimizer(config.train).init, out_shardings=at.state.optimizer)(trainable)
    step = jax.device_put(np.int32(0), at.state.step)
    return Beginning(TrainState(step, trainable, optimizer), frozen, {}, seconds_before, 0.0)


def refuse_other_run(workdir: Path, config: Config) -> None:
    """Stop before a run is continued with options that would make it another one, or mixed with another model.

    Raises:
        UserError: it names the first option that differs, or the folder holds converted weights or an exported model.
    """
    converted = is_converted(workdir)
    if converted or (workdir / EXPORT_FILE).is_file():
        what = "converted weights" if converted else "an exported model"
        raise UserError(f"'{workdir}' holds {what}; choose another --config.workdir for the run.")
    if not is_run(workdir):
        return
    old, new = (dataclasses.asdict(c) for c in (read_config(workdir), config))
    if not (workdir / LOG_FILE).exists() and not children(workdir / STEPS_FOLDER):
        return  # it failed before its first step: what is mended since then makes no other run
    for name, before, after in _differences(old, new):
        raise UserError(
            f"'{workdir}' holds a run with {name}={before!r}, not {after!r}; choose another --config.workdir, "
            "delete that one, or keep its options."
        )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Options that make another run."""
    for name, before in old.items():
        option, after = f"{prefix}{name}", new[name]
        if option in RESUMABLE:
            continue
        if isinstance(before, dict):
            yield from _differences(before, after, f"{option}.")
        elif before != after:
            yield option, before, after
