"""Data sets by name: where their images, masks and class names are.

To add one, write a function from `DatasetConfig` to `Dataset` and add it to `DATASETS`. The benchmarks share one, which
reads their rows in `benchmark_sets.py`.
"""

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dinov3seg_jax.config import DatasetConfig, ModelConfig
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS, Benchmark, Split
from dinov3seg_jax.data.chosen import choose
from dinov3seg_jax.data.coco_json import CocoImages, find_annotations
from dinov3seg_jax.data.colour_masks import ColourFolder, find_table, read_table
from dinov3seg_jax.data.folder import ImageFolder
from dinov3seg_jax.data.label_maps import original_ids
from dinov3seg_jax.data.painted import CLASS_NAMES, SEEN_CLASSES, UNSEEN_CLASSES, PaintedScenes
from dinov3seg_jax.data.panoptic import PanopticFolder
from dinov3seg_jax.data.prepared import MANIFEST, SPLITS, known_split, read_manifest
from dinov3seg_jax.data.tfds_source import find_records, open_records
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.files import expanded
from dinov3seg_jax.text.prompts import check_names, spoken_name
from dinov3seg_jax.text.tokenizers import open_tokenizer


class Source(Protocol):
    """Examples by index, 0 .. len - 1: "image", uint8 [H, W, 3] RGB; "label", int32 [H, W], -1 where ignored."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Dataset:
    """A source of labelled images and what its labels mean."""

    source: Source
    classes: tuple[str, ...]  # the name of each label, as given to the model
    seen: tuple[bool, ...] | None  # for each class, whether it occurs in training; None: not known
    merge_from: int | None = None  # predictions of this index or more count as this one; see `benchmark_sets.Benchmark`
    listed: Path | None = None  # the user's own file that says what the labels mean, if there is one
    weights: tuple[float, ...] | None = None  # what each class's part of the loss counts; None: 1
    parts: "tuple[Dataset, ...]" = ()  # where it is several, with their own classes; see `mixed`

    @property
    def names_from(self) -> str:
        """What an error calls the place where the names of the classes are."""
        return str(self.listed or "the data set")


def open_dataset(config: DatasetConfig) -> Dataset:
    """List a data set's files, or set up its painter; no image is read.

    Raises:
        UserError: The name or the split is unknown; files are missing or do not fit together.
    """
    if config.name not in DATASETS:
        close = difflib.get_close_matches(config.name, DATASETS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(DATASETS)}."
        raise UserError(f"there is no data set '{config.name}'; {hint}")
    if config.background and config.name != "coco_json":
        raise UserError(
            f"data set '{config.name}' takes no background, which is coco_json's; leave that out, and give those "
            "pixels a class of their own in the masks."
        )
    return DATASETS[config.name](config)


def class_names(config: DatasetConfig) -> tuple[str, ...]:
    """The names of a data set's classes; for benchmarks, whose lists are part of the package, no file is read.

    Raises:
        UserError: as for `open_dataset`.
    """
    if config.name in BENCHMARKS:
        return BENCHMARKS[config.name].names
    return open_dataset(config).classes


def picture_count(config: DatasetConfig) -> int | None:
    """How many pictures a data set has; of a benchmark's split as published, so that no file is read, if it says it.

    Raises:
        UserError: as for `open_dataset`.
    """
    if config.name not in BENCHMARKS:
        return len(open_dataset(config).source)
    split = BENCHMARKS[config.name].splits.get(known_split(config.split))
    return split.files[0] if split else None


def check_classes(names: Sequence[str], where: str, templates: Sequence[str], model: ModelConfig) -> None:
    """Refuse names that no model could be asked for, before it is trained on them or its weights are read.

    Args:
        names: of classes.
        where: they were read.
        templates: as for `text.prompts.check_names`.
        model: that is asked.

    Raises:
        UserError: as for `text.prompts.check_names`.
    """
    try:
        check_names(names, open_tokenizer(model), templates, model.text.context_length)
    except UserError as error:
        raise UserError(f"in {where}, {error}") from None


def open_painted_scenes(config: DatasetConfig) -> Dataset:
    """`data/painted.py`. Reads split ("train" or "eval"), size, image_size, view, seed, clutter."""
    if config.split == "train":
        source = PaintedScenes("train", config.size, config.image_size, config.seed, config.view, config.clutter)
        return Dataset(source, SEEN_CLASSES, (True,) * len(SEEN_CLASSES))
    if config.split != "eval":
        raise UserError(f"painted_scenes has no split '{config.split}'; use 'train' or 'eval'.")
    if not config.size:
        raise UserError("painted_scenes' split 'eval' would never end; set --config.data.eval.size= to 100, say.")
    source = PaintedScenes("eval", config.size, config.image_size, config.seed, config.view, config.clutter)
    return Dataset(source, CLASS_NAMES, tuple(name not in UNSEEN_CLASSES for name in CLASS_NAMES))


def open_folder(config: DatasetConfig) -> Dataset:
    """One's own images. Reads root and split.

    The root is a prepared folder of any data set, or array_record files written from one; or it holds `images/<split>`,
    `masks/<split>` and `classes.json`: a list of {"id": value in the masks, "name"}. The values 0 and 255 are ignored
    where the list lacks them. In names, COCO's "-other", "-merged" and "-stuff" are dropped.
    """
    root = _root(config)
    described = _open_described(config, root)
    if described:
        return described
    table = _read_classes(root / "classes.json")
    class_of_id = {number: index for index, (number, _) in enumerate(table)}
    images = _split_folder(root / "images", config.split)
    source = ImageFolder(images, root / "masks" / config.split, class_of_id, ignored_ids=(0, 255))
    return Dataset(source, prompt_names([name for _, name in table]), seen=None, listed=root / "classes.json")


def open_coco_panoptic(config: DatasetConfig) -> Dataset:
    """COCO's 133 things and stuff as one semantic map. Reads root and split.

    The root is laid out as for `open_folder`; or as downloaded, with `train2017` or `images/train2017`,
    `annotations/panoptic_train2017.json`, and the PNG files in `panoptic_train2017` there or beside it.
    """
    root = _root(config)
    if (root / "classes.json").is_file() or _is_described(root):
        return open_folder(config)
    split = SPLITS[known_split(config.split)][-1] if known_split(config.split) in SPLITS else config.split
    parts = f"panoptic_{split}"
    segments = next((path for path in (root / parts, root / "annotations" / parts) if path.is_dir()), root / parts)
    images = root / split if (root / split).is_dir() else _split_folder(root / "images", split)
    source = PanopticFolder(images, segments, root / "annotations" / f"{parts}.json")
    return Dataset(source, prompt_names(source.names), seen=None)


def open_coco_json(config: DatasetConfig) -> Dataset:
    """One's own images and COCO's instances, as annotation tools export them. Reads root, split and background.

    The root is the tool's folder, or the JSON file in it; see `coco_json.find_annotations`.
    """
    root = _root(config, file=True)
    annotations = find_annotations(root, config.split)
    source = CocoImages(root, annotations, config.split, config.background)
    return Dataset(source, prompt_names(source.names), seen=None, listed=annotations)


def open_colour_masks(config: DatasetConfig) -> Dataset:
    """One's own images, masks in colours, and a table of these. Reads root, split and unlisted.

    The root holds the table (see `colour_masks.find_table`), and `images/<split>` and `masks/<split>`; or
    `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation/<split>.txt`, as Pascal VOC and CVAT have them.
    """
    root = _root(config)
    table = read_table(find_table(root))
    if (root / "SegmentationClass").is_dir():
        whole = ColourFolder(root / "JPEGImages", root / "SegmentationClass", table, config.unlisted, True)
        source: Source = choose(whole, _in_list(root / "ImageSets" / "Segmentation", config.split, whole))
    else:
        images = _split_folder(root / "images", config.split)
        source = ColourFolder(images, root / "masks" / config.split, table, config.unlisted)
    return Dataset(source, prompt_names(table.names), seen=None, listed=table.path)


def _in_list(lists: Path, split: str, source: ImageFolder) -> list[int]:
    """The images of a split by its list of names, or by the only list that there is; all where there is none."""
    known = sorted(lists.glob("*.txt"))
    path = lists / f"{split}.txt"
    if not path.is_file():
        if len(known) > 1 or split != "train":
            hint = f"there are the splits {', '.join(other.stem for other in known)}" if known else "there is no list"
            raise UserError(f"{path} does not exist; {hint}.")
        if not known:
            return [*range(len(source))]
        path = known[0]
    names = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    found = {source.files(index)[0]: index for index in range(len(source))}
    if missing := sorted(names - found.keys()):
        raise UserError(f"{path} lists {missing[0]}, of which there is no mask; export the masks anew.")
    return sorted(found[name] for name in names)


def open_benchmark(config: DatasetConfig) -> Dataset:
    """A row of `BENCHMARKS`. Reads root and split ("train", "eval" or its official name).

    What the root holds decides: a prepared folder, or array_record files written from one, there or in a folder of the
    data set's name; else the tree that the field's tools write or, where it has not been written, the annotations as
    downloaded, where one value stands for one class.
    """
    benchmark = BENCHMARKS[config.name]
    root = _root(config)
    if (root / config.name).is_dir():
        root = root / config.name
    described = _open_described(config, root)
    if described:
        return described
    split = benchmark.splits.get(known_split(config.split))
    if split is None:
        known = " or ".join(benchmark.splits)
        raise UserError(f"data set '{config.name}' has no split '{config.split}'; use {known}.")
    return _of_benchmark(benchmark, _open_tree(benchmark, split, root), config.split)


DATASETS: dict[str, Callable[[DatasetConfig], Dataset]] = {
    "painted_scenes": open_painted_scenes,
    "folder": open_folder,
    "coco_json": open_coco_json,
    "colour_masks": open_colour_masks,
    "coco_panoptic": open_coco_panoptic,
    **dict.fromkeys(BENCHMARKS, open_benchmark),
}


def prompt_names(names: Sequence[str]) -> tuple[str, ...]:
    """Drop COCO's suffixes "-other", "-merged" and "-stuff", except where prompts would no longer differ."""
    short = [re.sub(r"(-(other|merged|stuff))+$", "", name) for name in names]
    count = Counter(map(spoken_name, short))
    return tuple(new if count[spoken_name(new)] == 1 else old for new, old in zip(short, names, strict=True))


def _is_described(root: Path) -> bool:
    return (root / MANIFEST).is_file() or find_records(root) is not None


def _open_described(config: DatasetConfig, root: Path) -> Dataset | None:
    """What a folder that says by itself what it holds does hold; None if it is no such folder."""
    records = find_records(root)
    if (root / MANIFEST).is_file():
        manifest = read_manifest(root)
        source: Source = manifest.images(root, manifest.split(config.split, root))
    elif records:
        manifest, source = open_records(records, config.split)
    elif (root / "images").is_dir() and (root / "labels").is_dir() and not (root / "masks").is_dir():
        raise UserError(f"{root} has no {MANIFEST}, so that it is not complete; let prepare finish it.")
    else:
        return None
    if config.name not in ("folder", manifest.dataset):
        raise UserError(
            f"{root} holds the data set '{manifest.dataset}', not '{config.name}'; name one of its folders."
        )
    benchmark = BENCHMARKS.get(manifest.dataset)
    return _of_benchmark(benchmark, source, config.split) if benchmark else Dataset(source, manifest.classes, seen=None)


def _of_benchmark(benchmark: Benchmark, source: Source, split: str) -> Dataset:
    """The data set, and a note where it is not all of it: scores of a part compare with nothing."""
    whole = benchmark.splits.get(known_split(split))
    if whole and len(source) not in whole.files:
        count = f"{len(source):,} images where there are {whole.files[0]:,}"
        print(f"note: {benchmark.title}'s split {whole.name} has {count}", file=sys.stderr)
    return Dataset(source, benchmark.names, seen=None, merge_from=benchmark.merge_from)


def _open_tree(benchmark: Benchmark, split: Split, root: Path) -> ImageFolder:
    top = root / benchmark.folder
    if not top.is_dir() and (root / split.images).is_dir():
        top = root
    images, labels, raw = top / split.images, top / split.labels, top / split.raw_labels
    if labels.is_dir():
        class_of_id, ignored = {index: index for index in range(benchmark.class_count)}, (benchmark.ignore,)
        return ImageFolder(images, labels, class_of_id, ignored, benchmark.label_bits, benchmark.shared_images)
    if split.raw_labels and raw.is_dir():
        class_of_id = {number: index for index, number in enumerate(original_ids(benchmark.label_map))}
        return ImageFolder(images, raw, class_of_id, benchmark.other_raw_values)
    raise UserError(
        f"the folder {labels} does not exist; check that the root is the folder above {benchmark.folder}, or make a "
        f"folder by `dinov3seg prepare {benchmark.dataset}`."
    )


def _root(config: DatasetConfig, file: bool = False) -> Path:
    """The folder of a data set; or a file, where that may be named instead."""
    option = f"--config.data.{'train' if config.split.startswith('train') else 'eval'}.root="
    if not config.root:
        raise UserError(f"data set '{config.name}' needs a folder; set {option} to it.")
    root = expanded(config.root)
    if not (root.is_dir() or (file and root.is_file())):
        raise UserError(f"the folder {root} of data set '{config.name}' does not exist; set {option} to the right one.")
    return root


def _split_folder(parent: Path, split: str) -> Path:
    folder = parent / split
    if not folder.is_dir():
        known = ", ".join(sorted(child.name for child in parent.iterdir() if child.is_dir())) if parent.is_dir() else ""
        hint = f"there are the splits {known}" if known else "check that the root is the folder above"
        raise UserError(f"the folder {folder} does not exist; {hint}.")
    return folder


def _read_classes(path: Path) -> list[tuple[int, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f'{path} does not exist; write it as a list of {{"id": 1, "name": "cat"}}, or read what annotation tools '
            "export by the name coco_json or colour_masks in place of folder."
        ) from None
    except (OSError, ValueError) as error:
        reason = one_line(error)
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
