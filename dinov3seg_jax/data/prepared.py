"""A prepared folder: images, labels that are class indices, and `manifest.json`, which says that all of it is there.

manifest.json                      {"format": 1, "dataset", "classes", "ignore", "source", "splits": {"eval": ...}}
images/<split>/<name>.<jpg|png>
labels/<split>/<name>.png          8-bit with 255 ignored, or 16-bit with 65535 ignored
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.data.folder import ImageFolder
from dinov3seg_jax.data.masks import MaskReader
from dinov3seg_jax.errors import UserError, one_line

MANIFEST = "manifest.json"
FORMAT = 1

# How the official tools, and users, call the two splits.
SPLITS = {
    "train": ("train", "training", "train2017"),
    "eval": ("eval", "val", "validation", "val2017"),
}


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder says of itself."""

    dataset: str
    classes: tuple[str, ...]  # that the labels count, or those given to the model
    ignore: int
    files: dict[str, int]  # of each split

    @property
    def class_count(self) -> int:
        """Labels are 0 .. class_count - 1."""
        benchmark = BENCHMARKS.get(self.dataset)
        return benchmark.class_count if benchmark else len(self.classes)

    @property
    def bits(self) -> int:
        """Of a stored label."""
        return 8 if self.ignore < 2**8 else 16

    def mask_reader(self) -> MaskReader:
        """Reads the labels."""
        return MaskReader(self._class_of_id(), (self.ignore,), (self.bits,))

    def images(self, folder: Path, split: str) -> ImageFolder:
        """The examples of a split.

        Raises:
            UserError: Files are missing.
        """
        parts = (folder / "images" / split, folder / "labels" / split)
        examples = ImageFolder(*parts, self._class_of_id(), (self.ignore,), (self.bits,))
        if len(examples) != self.files[split]:
            raise UserError(
                f"{folder} holds {len(examples):,} pairs of its split '{split}', where its {MANIFEST} counts "
                f"{self.files[split]:,}; copy it again, or prepare it anew."
            )
        return examples

    def split(self, wanted: str, where: Path) -> str:
        """The name of a split here, which may be called by the official one.

        Raises:
            UserError: There is none.
        """
        for name in (wanted, known_split(wanted)):
            if name in self.files:
                return name
        raise UserError(f"{where} has no split '{wanted}'; use {' or '.join(sorted(self.files))}.")

    def _class_of_id(self) -> dict[int, int]:
        return {index: index for index in range(self.class_count)}


def known_split(name: str) -> str:
    """ "train" or "eval", for any of their names; any other as it is."""
    return next((split for split, names in SPLITS.items() if name in names), name)


def read_manifest(folder: Path) -> Manifest:
    """Read a prepared folder's `manifest.json`.

    Raises:
        UserError: It is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, so that the folder is not complete; prepare it again.") from None
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{path} cannot be read ({reason}); prepare the folder again.") from error
    return parse_manifest(values, path)


def parse_manifest(values: Any, where: Path) -> Manifest:
    """Check what a manifest says.

    Raises:
        UserError: It is no manifest, of another format, or contradicts the package.
    """
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{where} is no manifest of format {FORMAT}; prepare the folder again.")
    try:
        files = {split: int(entry["files"]) for split, entry in values["splits"].items()}
        manifest = Manifest(str(values["dataset"]), tuple(map(str, values["classes"])), int(values["ignore"]), files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} lacks or garbles {error}; prepare the folder again.") from error
    benchmark = BENCHMARKS.get(manifest.dataset)
    if benchmark and manifest.classes not in (benchmark.names, benchmark.classes):
        raise UserError(f"{where} lists other classes than {benchmark.title} has; prepare the folder again.")
    return manifest
