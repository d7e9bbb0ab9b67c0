"""Data sets by name: where their images, masks and class names are.

To add one, write a function from `DatasetConfig` to `Dataset` and add it to `DATASETS`.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.data.folder import ImageFolder
from dinov3seg_jax.data.label_maps import original_ids
from dinov3seg_jax.data.painted import CLASS_NAMES, SEEN_CLASSES, UNSEEN_CLASSES, PaintedScenes
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.vocabularies import load_vocabulary


class Source(Protocol):
    """Examples by index, 0 .. len - 1: "image", uint8 [H, W, 3] RGB; "label", int32 [H, W], -1 where ignored."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Dataset:
    """A source of labelled images and what its labels mean."""

    source: Source
    classes: tuple[str, ...]  # the name of each label
    seen: tuple[bool, ...] | None  # for each class, whether it occurs in training; None: not known


def open_dataset(config: DatasetConfig) -> Dataset:
    """List a data set's files, or set up its painter; no image is read.

    Raises:
        UserError: The name or the split is unknown; files are missing or do not fit together.
    """
    if config.name not in DATASETS:
        close = difflib.get_close_matches(config.name, DATASETS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(DATASETS)}."
        raise UserError(f"there is no data set '{config.name}'; {hint}")
    return DATASETS[config.name](config)


def class_names(config: DatasetConfig) -> tuple[str, ...]:
    """The names of a data set's classes; for benchmarks, whose lists are part of the package, no file is read.

    Raises:
        UserError: as for `open_dataset`.
    """
    if config.name in BENCHMARK_VOCABULARIES:
        return load_vocabulary(BENCHMARK_VOCABULARIES[config.name])
    return open_dataset(config).classes


def open_painted_scenes(config: DatasetConfig) -> Dataset:
    """`data/painted.py`. Reads split ("train" or "eval"), size, image_size, view, seed."""
    if config.split == "train":
        source = PaintedScenes("train", config.size, config.image_size, config.seed, config.view)
        return Dataset(source, SEEN_CLASSES, (True,) * len(SEEN_CLASSES))
    if config.split != "eval":
        raise UserError(f"painted_scenes has no split '{config.split}'; use 'train' or 'eval'.")
    if not config.size:
        raise UserError("painted_scenes' split 'eval' would never end; set --config.data.eval.size= to 100, say.")
    source = PaintedScenes("eval", config.size, config.image_size, config.seed, config.view)
    return Dataset(source, CLASS_NAMES, tuple(name not in UNSEEN_CLASSES for name in CLASS_NAMES))


def open_folder(config: DatasetConfig) -> Dataset:
    """One's own images. Reads root and split.

    The root holds `images/<split>`, `masks/<split>` and `classes.json`: a list of {"id": value in the masks, "name"}.
    The values 0 and 255 are ignored where the list lacks them. In names, COCO's "-other", "-merged" and "-stuff" are
    dropped.
    """
    root = _root(config)
    table = _read_classes(root / "classes.json")
    class_of_id = {number: index for index, (number, _) in enumerate(table)}
    images = _split_folder(root / "images", config.split)
    source = ImageFolder(images, root / "masks" / config.split, class_of_id, ignored_ids=(0, 255))
    return Dataset(source, prompt_names([name for _, name in table]), seen=None)


def open_ade20k_150(config: DatasetConfig) -> Dataset:
    """ADE20K's 150 classes. Reads root, which holds `ADEChallengeData2016`, and split ("train" or "eval")."""
    split = _renamed(config, {"train": "training", "eval": "validation"})
    return _open_benchmark(config, "ADEChallengeData2016", split, BENCHMARK_VOCABULARIES[config.name], ignored_ids=(0,))


def open_coco_stuff_171(config: DatasetConfig) -> Dataset:
    """COCO-Stuff's 171 classes. Reads root, which holds `coco-stuff`, and split ("train" or "eval")."""
    split = _renamed(config, {"train": "train2017", "eval": "val2017"})
    return _open_benchmark(config, "coco-stuff", split, BENCHMARK_VOCABULARIES[config.name], ignored_ids=range(256))


DATASETS: dict[str, Callable[[DatasetConfig], Dataset]] = {
    "painted_scenes": open_painted_scenes,
    "folder": open_folder,
    "ade20k_150": open_ade20k_150,
    "coco_stuff_171": open_coco_stuff_171,
}


BENCHMARK_VOCABULARIES = {"ade20k_150": "ade_150", "coco_stuff_171": "coco_stuff_171"}


def prompt_names(names: Sequence[str]) -> tuple[str, ...]:
    """Drop COCO's suffixes "-other", "-merged" and "-stuff", except where names would no longer differ."""
    short = [re.sub(r"(-(other|merged|stuff))+$", "", name) for name in names]
    count = Counter(short)
    return tuple(new if count[new] == 1 else old for new, old in zip(short, names, strict=True))


def _open_benchmark(
    config: DatasetConfig, folder: str, split: str, vocabulary: str, ignored_ids: Iterable[int]
) -> Dataset:
    top = _root(config) / folder
    class_of_id = {number: index for index, number in enumerate(original_ids(vocabulary))}
    images = _split_folder(top / "images", split)
    source = ImageFolder(images, top / "annotations" / split, class_of_id, ignored_ids)
    return Dataset(source, tuple(load_vocabulary(vocabulary)), seen=None)


def _root(config: DatasetConfig) -> Path:
    option = f"--config.data.{'train' if config.split.startswith('train') else 'eval'}.root="
    if not config.root:
        raise UserError(f"data set '{config.name}' needs a folder; set {option} to it.")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"the folder {root} of data set '{config.name}' does not exist; set {option} to the right one.")
    return root


def _split_folder(parent: Path, split: str) -> Path:
    folder = parent / split
    if not folder.is_dir():
        known = ", ".join(sorted(child.name for child in parent.iterdir() if child.is_dir())) if parent.is_dir() else ""
        hint = f"there are the splits {known}" if known else "check that the root is the folder above"
        raise UserError(f"the folder {folder} does not exist; {hint}.")
    return folder


def _renamed(config: DatasetConfig, folders: dict[str, str]) -> str:
    if config.split in folders.values():
        return config.split
    if config.split not in folders:
        raise UserError(f"data set '{config.name}' has no split '{config.split}'; use {' or '.join(folders)}.")
    return folders[config.split]


def _read_classes(path: Path) -> list[tuple[int, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; write it as a list of {{"id": 1, "name": "cat"}}.') from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}); correct it.") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path} is not a list of classes; write it as a list of {{"id": 1, "name": "cat"}}.')
    for position, entry in enumerate(entries):
        if not (isinstance(entry, dict) and type(entry.get("id")) is int and 0 <= entry["id"] < 2**16):
            raise UserError(f'entry {position} of {path} has no "id" between 0 and 65535; add it.')
        if not (isinstance(entry.get("name"), str) and entry["name"].strip()):
            raise UserError(f'entry {position} of {path} has no "name"; add it.')
    for key in ("id", "name"):
        value, uses = Counter(entry[key] for entry in entries).most_common(1)[0]
        if uses > 1:
            raise UserError(f"{path} lists the {key} {value!r} {uses} times; keep one.")
    return [(entry["id"], entry["name"]) for entry in entries]
