"""The folders that models come in, told apart and described without loading JAX, which takes seconds."""

import dataclasses
import hashlib
import json
from pathlib import Path

from dinov3seg_jax.config import Config, from_dict
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.store.checksums import MANIFEST_FILE as STEP_MANIFEST_FILE

CONFIG_FILE = "config.json"  # of a run
STEPS_FOLDER = "checkpoints"
MANIFEST_FILE = "manifest.json"  # of converted weights: their arrays and checksums


def is_converted(folder: str | Path) -> bool:
    """Whether a folder is one that `python -m convert` wrote."""
    return (Path(folder) / MANIFEST_FILE).is_file()


def write_config(workdir: Path, config: Config) -> None:
    """Record what a run was started with."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / CONFIG_FILE, (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())


def read_config(workdir: Path) -> Config:
    """The config a run was started with.

    Raises:
        UserError: the folder is not that of a run, or its config cannot be read.
    """
    path = workdir / CONFIG_FILE
    if workdir.is_file():
        raise UserError(f"checkpoint '{workdir}' is a file; name a folder that train.py wrote.")
    if not workdir.is_dir():
        raise UserError(f"checkpoint folder '{workdir}' does not exist; name one that train.py wrote.")
    if not path.is_file():
        raise UserError(f"'{workdir}' is not a run's folder (it has no {CONFIG_FILE}); name one that train.py wrote.")
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")), origin=str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    except ValueError as error:  # JSON's, or bytes that are no text
        raise UserError(f"{path} is damaged ({error}); restore it or train again.") from None


def finished_steps(folder: Path) -> list[int]:
    """The steps in a run's folder of checkpoints that were finished, oldest first."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def fingerprint(folder: Path) -> str:
    """Tells the weights of one folder from those of another: a digest of the checksums that it says of itself.

    Those are of the newest step of a run, or of the arrays of converted weights; nothing else is read. A folder that
    holds neither has a digest too, and whoever loads it says what is wrong.
    """
    said = folder / MANIFEST_FILE
    if not is_converted(folder):
        steps = finished_steps(folder / STEPS_FOLDER)
        said = folder / STEPS_FOLDER / str(max(steps, default="")) / STEP_MANIFEST_FILE
    try:
        return hashlib.sha256(said.read_bytes()).hexdigest()
    except OSError:
        return hashlib.sha256().hexdigest()
