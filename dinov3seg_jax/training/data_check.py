"""What is checked of a run's data before it takes a step, draws a weight or leaves a file."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from dinov3seg_jax.config import Config
from dinov3seg_jax.data.census import Census, check_masks
from dinov3seg_jax.data.datasets import Dataset, check_classes
from dinov3seg_jax.files import expanded, stamp, write_whole
from dinov3seg_jax.processes import check_once

CENSUS_FILE = "census.json"


class DataCheck:
    """What was found, and what it was found of: a run that is resumed does not look again."""

    def __init__(self, config: Config, dataset: Dataset):
        """Check the names of the classes, and in the first process the masks, with a note for what is odd.

        Raises:
            UserError: scoring would refuse the names (see `text.prompts.check_names`), or the masks cannot be right
                (see `data.census`).
        """
        self._census: Census | None = None
        self._digest = ""
        if not config.model.linear.classes:  # which is not asked for names
            check_classes(dataset.classes, dataset.names_from, config.inference.templates, config.model)

        def look() -> None:
            self._digest = _digest(config, dataset)
            if _read(expanded(config.workdir)).get("data") != self._digest:
                found = [check_masks(part, _note) for part in dataset.parts or (dataset,)]
                self._census = found[0]
                most = max((census.most for census in found if census is not None), default=0)
                _say_what_finds_no_place(most, config.data.classes_per_image, len(dataset.classes))

        check_once(look)

    def write(self, workdir: Path) -> None:
        """Put what was found into the run's folder, for people too; by the first process."""
        if self._census is not None:
            found = {"data": self._digest} | dataclasses.asdict(self._census)
            del found["palette"]
            write_whole(workdir / CENSUS_FILE, (json.dumps(found, indent=2) + "\n").encode())


def _digest(config: Config, dataset: Dataset) -> str:
    """Of all that the check depends on."""
    if dataset.parts:
        return hashlib.sha256("".join(_digest(config, part) for part in dataset.parts).encode()).hexdigest()
    source: Any = dataset.source
    files = [source.files(index)[1:] for index in range(len(source))] if hasattr(source, "files") else []
    reader = getattr(source, "reader", None)
    ids = sorted(reader.class_of_id.items()) if reader else []
    stamps = [stamp(path) for pair in files for path in pair]
    values = [dataclasses.asdict(config.data.train), dataset.classes, ids, len(source), stamps]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _read(workdir: Path) -> dict[str, Any]:
    try:
        found = json.loads((workdir / CENSUS_FILE).read_bytes())
    except (OSError, ValueError):  # a new run, or a file that is damaged: look again
        return {}
    return found if isinstance(found, dict) else {}


def _say_what_finds_no_place(most: int, places: int, names: int) -> None:
    """Of class lists that are shorter than all names, and not longer than the classes in a mask."""
    if 0 < places < names and most >= places:
        _note(
            f"a mask shows {most} classes, and data.classes_per_image is {places}: where a crop shows as many, no "
            f"other is drawn, and where it shows more, pixels of some are ignored; {most + 1} or more avoids that"
        )


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
