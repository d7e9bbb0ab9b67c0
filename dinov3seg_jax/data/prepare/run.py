"""A preparation from end to end: list, check, convert in parallel, count, and say so in a manifest."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.prepare.archives import list_members
from dinov3seg_jax.data.prepare.example import Job, stored_ignore, unwritable
from dinov3seg_jax.data.prepare.matching import Listing
from dinov3seg_jax.data.prepare.recipes import RECIPES
from dinov3seg_jax.data.prepare.workers import outcomes
from dinov3seg_jax.data.prepared import FORMAT, MANIFEST
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded, write_whole
from dinov3seg_jax.places import is_remote, local_copy

UNFINISHED = ".unfinished.json"


def prepare(
    name: str,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    allow_partial: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a benchmark's images and class indices into a folder; the same bytes whatever `workers` is.

    Args:
        name: a key of `RECIPES`.
        sources: the official archives, or folders into which they were unpacked.
        out: the folder to write: `images/SPLIT/NAME.jpg`, `labels/SPLIT/NAME.png` and, last, `manifest.json`. A run
            that was stopped is taken up where it was; splits that the manifest lists already are left as they are.
        splits: "train", "eval" or their official names; None: all that the benchmark has.
        workers: processes.
        allow_partial: take what there is, where files are missing or their number is not the official one.
        progress: show a bar.

    Returns:
        The manifest: see `docs/data.md`.

    Raises:
        UserError: The sources are not whole or not this data set's, or `out` is something else or cannot be written.
    """
    out, paths = expanded(out), [expanded(source) for source in sources]
    if workers < 1:
        raise UserError(f"--workers={workers} is no number of processes; use 1 or more.")
    if is_remote(out):
        raise UserError(f"prepare writes to a folder of this machine, not to {out}; copy it there afterwards.")
    paths = [local_copy(path) for path in paths]
    keys = _split_keys(name, splits)
    new = not out.exists()
    try:
        manifest = _open_out(out, name, paths)
        if missing := [key for key in keys if key not in manifest["splits"]]:
            with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=out) as scratch:
                _prepare_splits(manifest, missing, paths, out, Path(scratch), workers, allow_partial, progress)
            _remove_hidden(out)
            write_whole(out / MANIFEST, json.dumps(manifest, indent=1).encode())
        (out / UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        if new and out.is_dir() and not any(out.iterdir()):  # nothing was begun
            out.rmdir()
    return manifest


def _split_keys(name: str, splits: Sequence[str] | None) -> list[str]:
    known = BENCHMARKS[name].splits
    by_official_name = {split.name: key for key, split in known.items()}
    keys = [by_official_name.get(split, split) for split in splits or known]
    if unknown := [key for key in keys if key not in known]:
        raise UserError(f"{name} has no split '{unknown[0]}'; there is {' and '.join(known)}.")
    return sorted(set(keys), key=list(known).index)


def _open_out(out: Path, name: str, sources: Sequence[Path]) -> dict[str, Any]:
    """The manifest that is there, or one without splits.

    Raises:
        UserError: `out` holds something else.
        OSError: It cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"'{out}' is a file; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    if manifest := _read_json(out / MANIFEST):
        if manifest.get("dataset") != name:
            raise UserError(
                f"'{out}' holds {manifest.get('dataset', 'something else')}, not {name}; choose another --out."
            )
        return manifest
    if not (out / UNFINISHED).exists() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UserError(f"'{out}' is no prepared data set, but is not empty; choose another --out.")
    benchmark = BENCHMARKS[name]
    return {
        "format": FORMAT,
        "dataset": name,
        "classes": list(benchmark.classes),
        "ignore": stored_ignore(benchmark),
        "source": ", ".join(path.resolve().name for path in sources),
        "splits": {},
    }


def _note_sources(out: Path, name: str, sources: Sequence[Path]) -> None:
    """Write down what `out` is being made of, so that a later run mixes in nothing else.

    Raises:
        UserError: It was begun with something else.
        OSError: It cannot be written.
    """
    request = {"dataset": name, "sources": [_describe_source(path) for path in sources]}
    begun = _read_json(out / UNFINISHED) or request
    if begun != request:
        raise UserError(
            f"'{out}' was begun as {begun.get('dataset')} from {', '.join(begun.get('sources', ()))}; "
            "name the same again, or remove the folder."
        )
    write_whole(out / UNFINISHED, json.dumps(request).encode())


def _describe_source(path: Path) -> str:
    return f"{path.name}, {path.stat().st_size} bytes" if path.is_file() else str(path.resolve())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is damaged; remove the folder and prepare the data set again.")
    return content


def _prepare_splits(
    manifest: dict[str, Any],
    keys: Sequence[str],
    sources: Sequence[Path],
    out: Path,
    scratch: Path,
    workers: int,
    allow_partial: bool,
    progress: bool,
) -> None:
    """List and check all splits, then convert them, and add them to the manifest."""
    name = manifest["dataset"]
    benchmark, recipe = BENCHMARKS[name], RECIPES[name]
    members = list_members(sources, scratch)
    jobs: list[Job] = []
    for key in keys:
        listing = recipe.list_examples(members, benchmark.splits[key].name)
        _check(listing, name, key, sources, allow_partial)
        jobs += [Job(name, out, key, example) for example in listing.examples]
        manifest["splits"][key] = {
            "files": 0,
            "official_files": benchmark.splits[key].files[0],
            "complete": not listing.incomplete and len(listing.examples) in benchmark.splits[key].files,
            "pixels": [0] * benchmark.class_count,
            "ignored_pixels": 0,
            "skipped": list(listing.incomplete),
        }
    _note_sources(out, name, sources)
    for key in keys:
        for kind in ("images", "labels"):
            (out / kind / key).mkdir(parents=True, exist_ok=True)
    pixels = {key: np.zeros(benchmark.class_count, np.int64) for key in keys}
    for outcome in tqdm(outcomes(jobs, workers), total=len(jobs), desc=name, unit="image", disable=not progress):
        split = manifest["splits"][outcome.split]
        if outcome.left_out:
            split["skipped"].append(f"{outcome.name} has no labelled pixel")
            continue
        split["files"] += 1
        split["ignored_pixels"] += outcome.ignored_pixels
        pixels[outcome.split] += outcome.pixels
    for key in keys:
        manifest["splits"][key]["pixels"] = pixels[key].tolist()


def _check(listing: Listing, name: str, key: str, sources: Sequence[Path], allow_partial: bool) -> None:
    """Whether this is the data set, and all of it."""
    split = BENCHMARKS[name].splits[key]
    given = ", ".join(f"'{path}'" for path in sources)
    count = len(listing.examples)
    if not count:
        raise UserError(
            f"{given} has no image with labels of {name}'s split '{key}' ({split.name}); "
            f"it is made from {RECIPES[name].archives}, and --splits says which splits to make."
        )
    if allow_partial:
        return
    if listing.incomplete:
        rest = f", and {len(listing.incomplete) - 1:,} more" if len(listing.incomplete) > 1 else ""
        raise UserError(
            f"{given} is not whole: {listing.incomplete[0]}{rest}; unpack or download it again, "
            "or leave out what is missing with --allow_partial."
        )
    if count not in split.files:
        official = " or ".join(f"{number:,}" for number in split.files)
        raise UserError(
            f"{given} holds {count:,} images of {name}'s split '{key}', but there should be {official}; unpack or "
            "download it again, or take what there is with --allow_partial."
        )


def _remove_hidden(out: Path) -> None:
    """What killed runs left half-written."""
    for folder in (out, *out.glob("images/*"), *out.glob("labels/*")):
        for left in folder.glob(".*"):
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != UNFINISHED:
                left.unlink(missing_ok=True)
