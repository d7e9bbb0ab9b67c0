"""What no step of a run changes, kept once for all of them: `<workdir>/frozen/<digest>`, a pack of arrays.

A pack is named by its content and never changes. It holds "parameters", as a step does, `arrays.json`, and checksums,
which are written last and without which it is nothing: so it needs no renaming, which buckets cannot do. A step that
refers to packs says so in `frozen.json`; one without that file, as all were once, holds every parameter itself.

A pack lies in the folder of the run, or of the run that this one is a part of: the towers that a run trains first keep
what they share with it in its folder.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dinov3seg_jax.folders import children
from dinov3seg_jax.store.checksums import damage

FROZEN_FOLDER = "frozen"
DIGITS = 16  # of a pack's name
ARRAYS_FILE = "arrays.json"  # of a pack: "shape" and "digest" of each array, by name
REFERENCE_FILE = "frozen.json"  # of a step: the shapes of what each pack holds for it, by digest and name


def packs_in(folder: Path) -> list[Path]:
    """The packs in a folder, and what is left of those that were not finished; nothing else that may lie there."""
    return [path for path in children(folder) if re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}(\..*)?", path.name)]


def packs_of(step: Path) -> dict[Path, dict[str, list[int]]]:
    """The packs that a step refers to, and what each of them holds for it; of a stack of blocks perhaps the first ones.

    Raises:
        OSError, ValueError: what the step says cannot be read, which its checksums say too.
    """
    path = step / REFERENCE_FILE
    if not path.exists():
        return {}
    return {_find(step, digest): shapes for digest, shapes in json.loads(path.read_bytes()).items()}


def pieces(step: Path, expected: Mapping[str, Any]) -> dict[str, dict[Path, tuple[int, ...]]]:
    """Where the arrays of a step lie: the folders that hold each, in the order of its rows, and their parts' shapes.

    Args:
        step: its folder.
        expected: arrays or their descriptions, by name.

    Raises:
        OSError, ValueError: what the step says cannot be read.
    """
    lie = {name: {step: tuple(leaf.shape)} for name, leaf in expected.items()}
    for pack, shapes in packs_of(step).items():
        for name in shapes.keys() & expected.keys():
            shape, whole = tuple(shapes[name]), tuple(expected[name].shape)
            lie[name] = {pack: shape}
            if shape[:1] < whole[:1]:
                lie[name][step] = (whole[0] - shape[0], *whole[1:])
    return lie


class Wrong(NamedTuple):
    """Why a step cannot be used."""

    reason: str
    pack: Path | None  # that has to be mended; None: the step itself


def wrong_with(step: Path, known: dict[Path, str | None]) -> Wrong | None:
    """What is wrong with a step, or with a pack that it refers to; None where all of it is whole.

    Args:
        step: its folder.
        known: the damage of packs that were looked at before; what is found now is added.
    """
    if reason := damage(step):
        return Wrong(reason, None)
    for pack in packs_of(step):
        if pack not in known:
            known[pack] = damage(pack)
        if reason := known[pack]:
            said = f"is damaged: {reason}" if pack.is_dir() else "is missing"
            return Wrong(f"'{pack}', which it needs, {said}", pack)
    return None


def steps_that_may_refer(home: Path, steps_folder: str) -> Iterator[Path]:
    """Every step of a run and of the runs in its folder that refers to packs, finished or not.

    Args:
        home: the folder of the run.
        steps_folder: the name of the folder of steps in a run's.
    """
    for run in (home, *children(home)):
        for step in children(run / steps_folder):
            if (step / REFERENCE_FILE).is_file():
                yield step


def _find(step: Path, digest: str) -> Path:
    run = step.parent.parent
    own, above = (folder / FROZEN_FOLDER / digest for folder in (run, run.parent))  # a bucket is its own parent
    return above if above.is_dir() and not own.is_dir() else own
