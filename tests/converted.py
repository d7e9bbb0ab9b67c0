"""A folder such as `python -m convert` writes, with arrays of one's own."""

import dataclasses
from hashlib import sha256
from pathlib import Path

import numpy as np

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.store import converted, safetensors


def write_folder(folder: Path, arrays: dict[str, np.ndarray], kind: str, model: ModelConfig) -> None:
    """Write arrays under our names; the manifest says the sections of the model that they belong to."""
    folder.mkdir(exist_ok=True)
    path = folder / converted.WEIGHTS_FILE
    entries = safetensors.create(path, {name: array.shape for name, array in arrays.items()})
    with path.open("r+b") as file:
        for name, array in arrays.items():
            safetensors.write_part(file, entries[name], None, array)
    sections = {
        section: dataclasses.asdict(getattr(model, section)) for section in {name.split("/")[0] for name in arrays}
    }
    described = {
        name: {"shape": list(array.shape), "sha256": sha256(array.tobytes()).hexdigest()}
        for name, array in arrays.items()
    }
    converted.write_manifest(folder, converted.Manifest(kind, "custom", 1, [], [], sections, described))
