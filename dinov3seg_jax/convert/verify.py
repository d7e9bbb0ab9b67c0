"""Is a conversion right?

Against outputs of a user's own PyTorch model, against the files it was made from, and against its own manifest.
`docs/verify.md` says what a file of outputs holds and how to make one.
"""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinov3seg_jax.convert.outputs import compute
from dinov3seg_jax.convert.run import array_sha256, prepare
from dinov3seg_jax.convert.sources import open_source, sha256
from dinov3seg_jax.convert.tables.rules import carry_out
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store import converted, safetensors

TOLERANCE = 1e-4
INPUTS = ("image", "tokens", "features")
RANKS = {"image": 4, "tokens": 2, "features": 4}


class Row(NamedTuple):
    """One line of a table."""

    what: str
    shape: tuple[int, ...]
    error: float  # the largest absolute difference; infinite where shapes differ
    largest: float  # absolute value expected
    passed: bool


class Case(NamedTuple):
    """What a model was given and what it gave."""

    name: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def check_manifest(folder: Path) -> bool:
    """Whether every array has the checksum that the manifest says; prints those that have not.

    Raises:
        UserError: the folder is none, or damaged.
    """
    manifest = converted.read_manifest(folder)
    path = converted.weights_file(folder)
    entries = safetensors.read_header(path)
    if different := sorted(entries.keys() ^ manifest.arrays.keys()):
        raise UserError(f"'{path}' and its {converted.MANIFEST_FILE} disagree on '{different[0]}'; convert again.")
    changed = [name for name, entry in entries.items() if array_sha256(path, entry) != manifest.arrays[name]["sha256"]]
    print(f"{folder}: {manifest.name}, {len(entries) - len(changed)} of {len(entries)} arrays as the manifest says")
    changed += [name for name, digest in manifest.files.items() if _digest(folder / name) != digest]
    for name in changed:
        print(f"  changed since the conversion: {name}")
    return not changed


def _digest(path: Path) -> str:
    """Checksum of a file; empty where there is none."""
    return sha256(path) if path.is_file() else ""


def compare_with_source(
    folder: Path, files: Sequence[Path], overrides: Sequence[str] = (), *, rounded_periods: bool = False, take: str = ""
) -> list[Row]:
    """Convert again, one tensor at a time and in memory, and compare bit for bit; one row for each array.

    Args:
        folder: converted.
        files: see `dinov3seg_jax.convert.sources.open_source`.
        overrides: as in the conversion; heads need not be repeated.
        rounded_periods: as in the conversion.
        take: as in the conversion.

    Raises:
        UserError: the files cannot be read, or are not what the folder says it is made of.
    """
    manifest = converted.read_manifest(folder)
    path = converted.weights_file(folder)
    entries = safetensors.read_header(path)
    source = open_source(files, take)
    sections = {name: options for name, options in manifest.model.items() if isinstance(options, dict)}
    said = [f"{name}.heads={options['heads']}" for name, options in sections.items() if "heads" in options]
    _, plan = prepare(source, manifest.kind, [*said, *overrides], rounded_periods=rounded_periods)
    shapes = {name: entry.shape for name, entry in entries.items()}
    if different := sorted(name for name in plan.shapes | shapes if plan.shapes.get(name) != shapes.get(name)):
        raise UserError(
            f"'{files[0]}' and '{folder}' hold different arrays, such as '{different[0]}'; name what it was made from."
        )
    found: dict[str, Row] = {}
    for (name, position), values in carry_out(plan, lambda key: source.tensors[key].read()):
        ours = safetensors.map_tensor(path, entries[name])
        ours = ours if position is None else ours[position]
        row = _compare(name, ours, values, 0.0)
        same = np.array_equal(_bits(ours), _bits(values))
        seen = found.get(name, row)
        found[name] = Row(
            name, entries[name].shape, max(row.error, seen.error), max(row.largest, seen.largest), same and seen.passed
        )
    return list(found.values())


def compare_outputs(folders: Sequence[Path], cases: Sequence[Case], tolerance: float) -> list[Row]:
    """Run the converted parts on the inputs of every case; one row for each output that they have.

    Raises:
        UserError: no output can be compared, or the folders do not fit together.
    """
    manifests = [converted.read_manifest(folder) for folder in folders]
    config = converted.model_config(*manifests)
    parameters = {name: x for folder in folders for name, x in converted.read_arrays(folder).items()}
    rows = []
    for case in cases:
        tokens, text = case.inputs.get("tokens"), config.text
        if tokens is not None and (
            tokens.shape[1] > text.context_length or not 0 <= tokens.min() <= tokens.max() < text.vocab_size
        ):
            raise UserError(
                f"in/{case.name}/tokens holds rows of {tokens.shape[1]} ids from {tokens.min()} to {tokens.max()}; "
                f"the text tower takes up to {text.context_length} ids below {text.vocab_size}."
            )
        ours = compute(config, parameters, case.inputs, set(case.outputs))
        rows += [
            _compare(label_of(case, output), np.asarray(ours[output]), expected, tolerance)
            for output, expected in case.outputs.items()
            if output in ours
        ]
    if not rows:
        parts = ", ".join(converted.parts(parameters))
        raise UserError(f"none of the outputs is one of {parts}; docs/verify.md lists what can be compared.")
    return rows


def read_cases(path: Path) -> list[Case]:
    """Read a file of inputs `in/<case>/<input>` and outputs `out/<case>/<output>`; its other entries are left alone.

    Raises:
        UserError: it is no .npz of plain arrays, has no case with inputs and outputs, or an input's shape is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = {key: archive[key] for key in archive.files if key.startswith(("in/", "out/"))}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:  # TypeError: .npy
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"'{path}' is no .npz file of plain arrays ({reason}); see docs/verify.md.") from None
    names = dict.fromkeys(key.split("/")[1] for key in values if key.count("/") == 2)
    sections = {
        name: [
            {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
            for start in (f"in/{name}/", f"out/{name}/")
        ]
        for name in names
    }
    cases = [
        Case(name, {key: _checked(path, name, key, given[key]) for key in INPUTS if key in given}, outputs)
        for name, (given, outputs) in sections.items()
        if outputs and any(key in given for key in INPUTS)
    ]
    if not cases:
        raise UserError(f"'{path}' holds no case (in/<case>/image with out/<case>/...); see docs/verify.md.")
    return cases


def _checked(path: Path, case: str, name: str, value: np.ndarray) -> np.ndarray:
    """An input as our parts take it."""
    floats = name != "tokens"
    fits = value.ndim == RANKS[name] and value.size and value.dtype.kind in ("f" if floats else "iu")
    if not fits or (name == "image" and value.shape[1] != 3) or not np.isfinite(value).all():
        wanted = {"image": "[b, 3, height, width] of floats", "tokens": "[n, length] of integers"}
        raise UserError(
            f"in/{case}/{name} of '{path}' is {value.dtype} {list(value.shape)}; "
            f"give {wanted.get(name, '[b, c, h, w] of floats')}, all finite."
        )
    return value.astype(np.float32 if floats else np.int32)


def _compare(what: str, ours: np.ndarray, expected: np.ndarray, tolerance: float) -> Row:
    expected = np.asarray(expected, np.float64)
    largest = float(np.abs(expected).max(initial=0))
    if ours.shape != expected.shape:
        return Row(f"{what} (ours {list(ours.shape)})", expected.shape, math.inf, largest, False)
    error = float(np.abs(ours - expected).max(initial=0))
    return Row(what, expected.shape, math.inf if math.isnan(error) else error, largest, error <= tolerance)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def label_of(case: Case, output: str) -> str:
    return f"{case.name}/{output}"
