"""How far the scoring of a data set has come, on disk, so that a run that was killed goes on where it was."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.files import expanded, stamp, write_whole
from dinov3seg_jax.folders import files_below
from dinov3seg_jax.inference.recipes import RESULTS_VERSION

Identity = dict[str, str]  # what must not differ, as digests: "config", "checkpoint" and "data set"


class Progress(NamedTuple):
    """What the images that were scored so far amount to."""

    counts: Int[np.ndarray, "c c+1"]  # `ConfusionMatrix.counts`
    image_miou: Float[np.ndarray, " done"]  # of each image, in the order of this process's share; see `image_miou`
    seconds: float
    measures: Int[np.ndarray, " n"]  # `Measures.arrays`; none before the first picture

    @property
    def done(self) -> int:
        """How many images."""
        return len(self.image_miou)


def progress_file(folder: Path) -> Path:
    """Where this process keeps it."""
    return folder / ("partial.npz" if jax.process_count() == 1 else f"partial.{jax.process_index()}.npz")


def save_progress(path: Path, progress: Progress, identity: Identity) -> None:
    """Write it, whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, identity=np.array(json.dumps(identity)), **progress._asdict())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); make room, or give rights to it."
        ) from None


def load_progress(path: Path, identity: Identity, classes: int) -> Progress:
    """Go on from a file, or begin; says so, and begins as well where the file is of something else."""
    nothing = Progress(np.zeros((classes, classes + 1), np.int64), np.zeros(0), 0.0, np.zeros(0, np.int64))
    if not path.is_file():
        return nothing
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            other = json.loads(str(arrays["identity"]))
            saved = Progress(arrays["counts"], arrays["image_miou"], float(arrays["seconds"]), arrays["measures"])
    except Exception as error:  # zip, npy and JSON have a dozen kinds of errors between them
        print(f"{path} cannot be read ({one_line(error)}); starting over", flush=True)
        return nothing
    if differing := [name for name in identity if identity[name] != other.get(name)]:
        print(f"{path} is of another {' and '.join(differing)}; starting over", flush=True)
        return nothing
    print(f"going on from {path}: {saved.done} images are counted", flush=True)
    return saved


def remove_progress(folder: Path) -> None:
    """Once everything it was for is written; files of other numbers of processes go as well."""
    for path in folder.glob("partial*.npz"):
        path.unlink(missing_ok=True)


def identify(recipe: Any, weights: Iterable[Path], config: DatasetConfig, dataset: Dataset) -> Identity:
    """What scores depend on.

    Args:
        recipe: all that decides how images are segmented, as plain values and dataclasses.
        weights: files of the model. They count by name, size and time of change, which is quick.
        config: of the data set.
        dataset: its files count likewise.
    """
    source: Any = dataset.source
    if hasattr(source, "files"):
        paths = [path for index in range(len(source)) for path in source.files(index)[1:]]
    else:
        paths = list(files_below(expanded(config.root)).values()) if config.root else []
    described = [dataclasses.asdict(config), len(source), dataset.classes, dataset.merge_from]
    return {
        "config": _digest([RESULTS_VERSION, jax.process_count(), recipe]),
        "checkpoint": _digest([stamp(path) for path in weights]),
        "data set": _digest([described, [stamp(path) for path in paths]]),
    }


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=dataclasses.asdict, sort_keys=True).encode()).hexdigest()
