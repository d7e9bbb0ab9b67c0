"""Checkpoints: `<workdir>/config.json` and `<workdir>/checkpoints/<step>`. Only this module imports orbax.

A step holds "parameters" (all of them, as nested dicts of arrays), "optimizer" and "progress" (where the data stream
is, and the seconds trained). Orbax writes a step to a temporary folder and renames it, so a step is whole or absent.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from dinov3seg_jax.config import Config, from_dict
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters, build
from dinov3seg_jax.weights import is_converted, model_config, read_arrays, read_manifest

CONFIG_FILE = "config.json"
STEPS_FOLDER = "checkpoints"


class Restored(NamedTuple):
    """What a run continues from."""

    step: int
    parameters: Parameters
    optimizer: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: Path, keep: int):
        """`keep`: how many of the newest steps stay on disk."""
        self._steps = ocp.training.Checkpointer(
            (workdir / STEPS_FOLDER).absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, parameters: Parameters, optimizer: Any, progress: dict[str, Any]) -> None:
        """Write a step in the background, after the one before; `close` waits for it."""
        self._steps.wait()  # while one step is being written, orbax silently skips the next
        self._steps.save_checkpointables_async(
            step,
            {
                "parameters": unflatten_dict(parameters, sep="/"),
                "optimizer": jax.tree.leaves(optimizer),
                "progress": progress,
            },
            force=True,
        )

    def restore(self, parameters: AbstractParameters, optimizer: Any) -> Restored | None:
        """Load the newest step onto the given shapes and shardings; None where there is none.

        Raises:
            UserError: the step is damaged or of another model.
        """
        latest = self._steps.latest
        if latest is None:
            return None
        loaded = _load_step(
            self._steps,
            latest.step,
            {
                "parameters": unflatten_dict(parameters, sep="/"),
                "optimizer": jax.tree.leaves(optimizer),
                "progress": None,
            },
        )
        optimizer = jax.tree.unflatten(jax.tree.structure(optimizer), loaded["optimizer"])
        return Restored(latest.step, flatten_dict(loaded["parameters"], sep="/"), optimizer, loaded["progress"])

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._steps.close()


def write_config(workdir: Path, config: Config) -> None:
    """Record what a run was started with."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / CONFIG_FILE, (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())


def read_config(workdir: Path) -> Config:
    """The config a run was started with.

    Raises:
        UserError: the folder is not that of a run.
    """
    path = workdir / CONFIG_FILE
    if not workdir.is_dir():
        raise UserError(f"checkpoint folder '{workdir}' does not exist; name one that train.py wrote.")
    if not path.is_file():
        raise UserError(f"'{workdir}' is not a run's folder (it has no {CONFIG_FILE}); name one that train.py wrote.")
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")), origin=str(path))
    except ValueError as error:  # JSON's, or bytes that are no text
        raise UserError(f"{path} is damaged ({error}); restore it or train again.") from None


def load_parameters(workdir: str | Path, shardings: dict[str, Any] | None = None) -> tuple[Config, Parameters]:
    """Load the newest weights of a run, or the parts that a converted folder holds.

    Args:
        workdir: the folder that train.py or `python -m convert` wrote.
        shardings: by parameter name; default the first device.

    Raises:
        UserError: the folder is neither, holds no complete step, or a step that does not fit its config.
    """
    if is_converted(workdir):
        return Config(model=model_config(read_manifest(workdir))), read_arrays(workdir, shardings=shardings)
    config = read_config(Path(workdir))
    _, abstract = build(config.model)
    on_one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_one if shardings is None else shardings[name])
        for name, leaf in abstract.items()
    }
    loaded = _load_newest(Path(workdir), {"parameters": unflatten_dict(placed, sep="/")})
    return config, flatten_dict(loaded["parameters"], sep="/")


def read_progress(workdir: str | Path) -> dict[str, Any]:
    """What the newest step says of the run: "data" and "train_seconds".

    Raises:
        UserError: as for `load_parameters`.
    """
    return _load_newest(Path(workdir), {"progress": None})["progress"]


def _load_newest(workdir: Path, what: dict[str, Any]) -> dict[str, Any]:
    folder = workdir / STEPS_FOLDER
    nothing = UserError(f"'{workdir}' holds no complete checkpoint; let train.py reach train.checkpoint_every steps.")
    if not folder.is_dir():
        raise nothing
    steps = ocp.training.Checkpointer(folder.absolute())
    try:
        if steps.latest is None:
            raise nothing
        return _load_step(steps, steps.latest.step, what)
    finally:
        steps.close()


def _load_step(steps: ocp.training.Checkpointer, step: int, what: dict[str, Any]) -> dict[str, Any]:
    try:
        return steps.load_checkpointables(step, what)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"checkpoint '{steps.directory / str(step)}' cannot be loaded ({reason}); "
            "delete it to fall back on the one before, or train again."
        ) from error
