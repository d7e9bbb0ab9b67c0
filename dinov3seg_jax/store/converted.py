"""Converted weights: a folder with `weights.safetensors` and `manifest.json`, which `dinov3seg convert` writes.

The arrays are float32, under our names of the whole model, such as "vision/backbone/norm/scale". A folder holds the
parts that one release has; several folders together begin a model.
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from dinov3seg_jax.config import Config, ModelConfig, closed
from dinov3seg_jax.config_files import from_dict
from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.files import expanded
from dinov3seg_jax.places import local_copy
from dinov3seg_jax.store import safetensors
from dinov3seg_jax.store.run import TOKENIZER_FILE, digest_of

if TYPE_CHECKING:
    import jax

    from dinov3seg_jax.models.parameters import AbstractParameters, Parameters

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"

# Options that arrays do not depend on, or that their shapes say as well.
INITIAL_OR_SHAPE = {"layerscale_init", "ffn_ratio", "ffn_align", "mlp_ratio"}
NO_HEAD = ("vision.head_blocks", 0)  # what a backbone by itself says; another folder may hold a head for it


@dataclass(frozen=True, config=closed)
class Manifest:
    """What a converted folder is."""

    kind: str  # of source, as on the command line: "dinov3", "dinotxt", ...
    name: str  # of the model, such as "vitl16"; "custom" where it is no released size
    rules_version: int
    sources: list[dict[str, str]]  # "name" and "sha256" of each file
    notes: list[str]  # what is worth knowing of this conversion, such as a checksum that differs from the official one
    model: dict[str, Any]  # sections and options of `ModelConfig` that the arrays belong to, as far as they decide
    arrays: dict[str, dict[str, Any]]  # "shape" and "sha256" of each
    config: dict[str, dict[str, Any]] = Field(default_factory=dict)  # other sections of `Config`: how it is used
    files: dict[str, str] = Field(default_factory=dict)  # sha256 of what lies beside the arrays, such as a tokenizer


class ConvertedFolder:
    """A folder that `convert` wrote. What it says of itself is read when it is first asked for."""

    kind: Literal["converted"] = "converted"

    def __init__(self, path: str | Path):
        """Take its path."""
        self.path = expanded(path)

    def __str__(self) -> str:
        """As messages name it."""
        return str(self.path)

    @functools.cached_property
    def manifest(self) -> Manifest:
        """All that it says of itself.

        Raises:
            UserError: it is no converted folder, or its manifest is damaged.
        """
        return read_manifest(self.path)

    @property
    def config(self) -> Config:
        """The model that its parts belong to, as far as they say; all else has its default.

        Raises:
            UserError: as for `manifest`.
        """
        model = dict(self.manifest.model)
        if TOKENIZER_FILE in self.manifest.files:
            model["tokenizer"] = str(self.path / TOKENIZER_FILE)
        return from_dict({"model": model, **self.manifest.config}, origin=str(self.path / MANIFEST_FILE))

    @property
    def checksums(self) -> Mapping[str, str]:
        """Sha256 of each array, in hex, by its name."""
        return {name: array["sha256"] for name, array in self.manifest.arrays.items()}

    @property
    def fingerprint(self) -> str:
        """Tells these weights from others: a digest of the manifest, which has all checksums."""
        return digest_of(self.path / MANIFEST_FILE)

    def files(self) -> list[Path]:
        """All files that the weights depend on."""
        return [self.path / name for name in (MANIFEST_FILE, WEIGHTS_FILE, *self.manifest.files)]

    def arrays(
        self, beginnings: tuple[str, ...] = ("",), shardings: "Mapping[str, jax.sharding.Sharding] | None" = None
    ) -> "Parameters":
        """Its parameters.

        Args:
            beginnings: of the names of those that are wanted, such as "text/"; default all.
            shardings: by name; default the first device.

        Raises:
            UserError: the folder is damaged.
        """
        names = [name for name in self.manifest.arrays if name.startswith(beginnings)]
        return read_arrays(self.path, names, shardings)


def is_converted(folder: str | Path) -> bool:
    """Whether a folder is one that `convert` wrote."""
    return (expanded(folder) / MANIFEST_FILE).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """Read what a folder says of itself.

    Raises:
        UserError: it is no converted folder, or its manifest is damaged.
    """
    path = expanded(folder) / MANIFEST_FILE
    if not is_converted(folder):
        raise UserError(f"'{folder}' holds no converted weights (it has no {MANIFEST_FILE}); run dinov3seg convert.")
    try:
        return pydantic.TypeAdapter(Manifest).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error, 200)}); convert again.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, readable and the same for the same manifest."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_arrays(
    folder: str | Path,
    names: Iterable[str] | None = None,
    shardings: "Mapping[str, jax.sharding.Sharding] | None" = None,
) -> "Parameters":
    """Read parameters of a converted folder.

    Args:
        folder: that `dinov3seg convert` wrote.
        names: which; default all of them.
        shardings: by name; each device then reads its own slice only. Default: the first device.

    Raises:
        UserError: the folder is none, is damaged, or lacks a name.
    """
    import jax

    manifest = read_manifest(folder)
    path = weights_file(expanded(folder))
    entries = safetensors.read_header(path)
    if {name: list(entry.shape) for name, entry in entries.items()} != {
        name: array["shape"] for name, array in manifest.arrays.items()
    }:
        raise UserError(f"'{path}' does not hold what {MANIFEST_FILE} says; convert again.")
    wanted = list(entries) if names is None else list(names)
    if missing := sorted(set(wanted) - entries.keys()):
        raise UserError(f"'{folder}' holds no '{missing[0]}'; it has the parts {', '.join(parts(entries))}.")
    if shardings is None:
        read = ((name, jax.device_put(safetensors.read_tensor(path, entries[name]))) for name in wanted)
        # One after the other: what is on its way to the device is in memory twice.
        return {name: jax.block_until_ready(array) for name, array in read}
    return {name: _place(path, entries[name], shardings[name]) for name in wanted}


def weights_file(folder: Path) -> Path:
    """The file of the arrays, on this machine, since parts of it are mapped into memory.

    Raises:
        UserError: it cannot be copied here.
    """
    try:
        return local_copy(folder / WEIGHTS_FILE)
    except OSError as error:
        raise UserError(f"'{folder / WEIGHTS_FILE}' cannot be read ({reason(error)}); convert again.") from error


def model_config(*manifests: Manifest) -> ModelConfig:
    """The model that converted parts make together; what none of them says has its default.

    Raises:
        UserError: two of them contradict each other, or an option is unknown.
    """
    known: dict[str, Any] = {}
    for option, value in (said for manifest in manifests for said in _said(manifest)):
        if (option, value) == NO_HEAD and option in known:
            continue
        if known.get(option, value) != value and (option, known[option]) != NO_HEAD:
            raise UserError(
                f"the converted folders do not fit together: {option} is {known[option]} in one "
                f"and {value} in another; name parts of one model."
            )
        known[option] = value
    nested: dict[str, Any] = {}
    for option, value in known.items():
        section, _, name = option.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return from_dict({"model": nested}, origin=MANIFEST_FILE).model


def refuse_other_model(
    folder: str | Path, manifest: Manifest, model: ModelConfig, expected: "AbstractParameters"
) -> None:
    """Stop before converted parts enter a model that they were not made for.

    Raises:
        UserError: it names the options that differ, or the first array that does.
    """
    others = [
        (option, value, ours)
        for option, value in _said(manifest)
        if (option, value) != NO_HEAD
        and option.split(".")[-1] not in INITIAL_OR_SHAPE
        and (ours := operator.attrgetter(option)(model)) != value
    ]
    if others:
        differ = ", and ".join(f"model.{option}={value!r}, not {ours!r}" for option, value, ours in others)
        mend = " ".join(f"--config.model.{option}={_typed(value)}" for option, value, _ in others)
        together = " together" if len(others) > 1 else ""
        raise UserError(f"'{folder}' was converted with {differ}; set {mend}{together}.")
    for name, array in manifest.arrays.items():
        if name not in expected:
            raise UserError(f"'{folder}' holds '{name}', which config.model has no place for; switch that part on.")
        if expected[name].shape != tuple(array["shape"]):
            raise UserError(
                f"'{folder}' holds '{name}' with shape {array['shape']}, and config.model needs "
                f"{list(expected[name].shape)}; set the sizes of the model to those of its {MANIFEST_FILE}."
            )


def parts(names: Iterable[str]) -> list[str]:
    """The parts of the model that parameters belong to, such as "vision/backbone" and "text"."""
    of_dinotxt = ("vision/backbone/", "vision/head/")
    return sorted({"/".join(name.split("/")[: 2 if name.startswith(of_dinotxt) else 1]) for name in names})


def _said(manifest: Manifest) -> Iterable[tuple[str, Any]]:
    """Options of the model, such as "vision.dim", and their values."""
    for section, said in manifest.model.items():
        options = {f"{section}.{option}": value for option, value in said.items()} if isinstance(said, dict) else {}
        for option, value in (options or {section: said}).items():
            yield option, tuple(value) if isinstance(value, list) else value


def _typed(value: Any) -> str:
    """As one word of a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) and len(value) > 1 else str(value)


def _place(path: Path, entry: safetensors.Entry, sharding: "jax.sharding.Sharding") -> "jax.Array":
    import jax

    mapped = safetensors.map_tensor(path, entry)

    @functools.cache  # devices that hold the same slice share one reading of it
    def read(bounds: tuple[tuple[int | None, int | None], ...]) -> np.ndarray:
        return np.array(mapped[tuple(slice(*pair) for pair in bounds)])

    return jax.make_array_from_callback(
        entry.shape, sharding, lambda index: read(tuple((axis.start, axis.stop) for axis in index or ()))
    )
