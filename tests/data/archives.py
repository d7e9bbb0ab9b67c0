"""Miniatures of the benchmarks' official archives: the same folders, file types and indices, a few tiny pictures each.

Expected classes are drawn first and written as the official values, by rules that are spelled out here once more.
"""

import io
import itertools
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from dinov3seg_jax.data.label_maps import original_ids

IGNORED = -1
HEIGHT, WIDTH = 24, 32
SHRUNK = 512  # short side at which ADE20K-847 is scored
COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
VOC_BACKGROUND, VOC_VOID = 0, 255

Labels = dict[str, np.ndarray]  # by name: class indices [H, W], -1 where ignored


@dataclass(frozen=True)
class Miniature:
    """Where a miniature is and what it has to become."""

    dataset: str
    archives: tuple[Path, ...]  # as downloaded
    tree: Path  # the folder above what the archives unpack to
    images: dict[str, dict[str, Path]]  # by split ("train", "eval") and name: in the tree
    labels: dict[str, Labels]  # what prepare has to write; images that it leaves out are not in it


def make_coco_stuff_171(folder: Path, pictures: int = 3) -> Miniature:
    ids = [value for value in range(182) if value not in COCO_GAPS]
    made = _Maker(folder, "coco_stuff_171", len(ids))
    top = made.tree / "coco-stuff"
    for split, official in (("train", "train2017"), ("eval", "val2017")):
        for index in range(pictures):
            name = f"{index + 9:012}"
            values = made.draw(split, name, ids, ignored=(*COCO_GAPS, 182, 255))
            made.picture(split, name, top / "images" / official / f"{name}.jpg")
            _save(values.astype(np.uint8), top / "annotations" / official / f"{name}.png")
    archives = [_zip(folder / f"{split}.zip", top / "images", split) for split in ("train2017", "val2017")]
    return made.finish(*archives, _zip(folder / "stuffthingmaps_trainval2017.zip", top / "annotations"))


def make_ade20k_150(folder: Path, pictures: int = 3) -> Miniature:
    made = _Maker(folder, "ade20k_150", 150)
    top = made.tree / "ADEChallengeData2016"
    for split, official, short in (("train", "training", "train"), ("eval", "validation", "val")):
        for index in range(pictures):
            name = f"ADE_{short}_{index + 1:08}"
            values = made.draw(split, name, range(1, 151), ignored=(0,))
            made.picture(split, name, top / "images" / official / f"{name}.jpg")
            _save(values.astype(np.uint8), top / "annotations" / official / f"{name}.png")
    (top / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    archive = _zip(folder / "ADEChallengeData2016.zip", made.tree)
    _add_resource_fork(archive, f"ADEChallengeData2016/images/validation/._{name}.jpg")
    return made.finish(archive)


def make_ade20k_847(folder: Path, pictures: int = 3) -> Miniature:
    """The last picture of each split is larger than what is scored."""
    ids = original_ids("ade_847")
    ignored = next(value for value in range(1, 4000) if value not in ids)
    made = _Maker(folder, "ade20k_847", len(ids))
    top = made.tree / "ADE20K_2021_17_01"
    for split, official, short in (("train", "training", "train"), ("eval", "validation", "val")):
        for index in range(pictures):
            name = f"ADE_{short}_{index + 1:08}"
            scene = top / "images" / "ADE" / official / ("urban", "home_or_hotel")[index % 2] / f"scene_{index}"
            size = (600, 530) if index == pictures - 1 else (HEIGHT, WIDTH)
            values = made.draw(split, name, ids, ignored=(0, ignored), size=size)
            made.picture(split, name, scene / f"{name}.jpg", size)
            made.labels[split][name] = shrunk_label(made.labels[split][name])
            blue = np.arange(values.size, dtype=np.int64).reshape(size) % 256  # numbers the objects
            colours = np.stack([values // 256 * 10 + made.rng.integers(10, size=size), values % 256, blue], -1)
            _save(colours.astype(np.uint8), scene / f"{name}_seg.png")
            _save(colours.astype(np.uint8), scene / f"{name}_parts_1.png")
            _save(blue.astype(np.uint8), scene / name / f"instance_000_{name}.png")
            (scene / f"{name}.json").write_text("{}")
    (top / "index_ade20k.pkl").write_bytes(b"\x80\x04cos\nabort\n(tR.")  # whoever loads it learns why one should not
    return made.finish(_zip(folder / "ADE20K_2021_17_01.zip", made.tree))


def make_pascal_context_59(folder: Path, pictures: int = 3) -> Miniature:
    made = _Maker(folder, "pascal_context_59", 59)
    ids = original_ids("pc_59")
    merged = _voc_2010(made, pictures, ids, ignored=(0, 1, 459))
    file = made.tree / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
    file.write_text(json.dumps(merged))
    archives = _tar_images(made, "VOC2010", folder / "VOCtrainval_03-May-2010.tar"), _copy(file, folder)
    return made.finish(*archives)


def make_pascal_context_459(folder: Path, pictures: int = 3) -> Miniature:
    made = _Maker(folder, "pascal_context_459", 459)
    merged = _voc_2010(made, pictures, range(1, 460), ignored=())
    top = made.tree / "VOCdevkit" / "VOC2010"
    for labels in made.labels.values():
        for name, label in labels.items():
            path = top / "trainval" / f"{name}.mat"
            path.parent.mkdir(exist_ok=True)
            scipy.io.savemat(path, {"LabelMap": (label + 1).astype(np.uint16)}, do_compression=True)
    (top / "trainval_merged.json").write_text(json.dumps(merged))
    (top / "pascalcontext_val.txt").write_text("\n".join(made.labels["eval"]))
    return made.finish(
        _tar_images(made, "VOC2010", folder / "VOCtrainval_03-May-2010.tar"),
        _tar(folder / "trainval.tar.gz", top, "trainval", "w:gz"),
        _copy(top / "pascalcontext_val.txt", folder),
        _copy(top / "trainval_merged.json", folder),
    )


def make_voc_20(folder: Path, pictures: int = 3) -> Miniature:
    """The last picture shows background only, and is left out."""
    made = _Maker(folder, "voc_20", 20)
    return _make_voc(made, pictures, [*range(1, 21)], ignored=(VOC_BACKGROUND, VOC_VOID))


def make_voc_20b(folder: Path, pictures: int = 3) -> Miniature:
    made = _Maker(folder, "voc_20b", 21)
    return _make_voc(made, pictures, [*range(1, 21), VOC_BACKGROUND], ignored=(VOC_VOID,))


MAKERS: dict[str, Callable[..., Miniature]] = {
    "coco_stuff_171": make_coco_stuff_171,
    "ade20k_150": make_ade20k_150,
    "ade20k_847": make_ade20k_847,
    "pascal_context_59": make_pascal_context_59,
    "pascal_context_459": make_pascal_context_459,
    "voc_20": make_voc_20,
    "voc_20b": make_voc_20b,
}


def shrunk_label(label: np.ndarray, short_side: int = SHRUNK) -> np.ndarray:
    """Of each row and column the one at floor(i * old / new)."""
    height, width = label.shape
    scale = min(height, width) / short_side
    if scale <= 1:
        return label
    size = [short_side if side == min(height, width) else round(side / scale) for side in (height, width)]
    rows = [row * height // size[0] for row in range(size[0])]
    columns = [column * width // size[1] for column in range(size[1])]
    return label[np.ix_(rows, columns)]


def plain_runs(inside: np.ndarray) -> list[int]:
    """COCO's run lengths, outside first, column after column."""
    pixels = inside.T.ravel()
    borders = [0, *(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1).tolist(), len(pixels)]
    lengths = [end - start for start, end in itertools.pairwise(borders)]
    return [0, *lengths] if pixels[0] else lengths


def compressed_runs(inside: np.ndarray) -> str:
    """The same as text."""
    lengths, text = plain_runs(inside), ""
    for index, length in enumerate(lengths):
        number, more = length - (lengths[index - 2] if index > 2 else 0), True
        while more:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            text += chr(group + 48 + (32 if more else 0))
    return text


class _Maker:
    """Draws classes and pictures, and keeps what is expected."""

    def __init__(self, folder: Path, dataset: str, classes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dataset, self.tree, self.classes = dataset, folder / "tree", classes
        self.rng = np.random.default_rng(list(dataset.encode()))
        self.labels: dict[str, Labels] = {}
        self.images: dict[str, dict[str, Path]] = {}

    def draw(self, split: str, name: str, ids, ignored, size=(HEIGHT, WIDTH)) -> np.ndarray:
        """The official values of patches of random classes, some of them ignored; classes are noted as expected."""
        patches = self.rng.integers(-1 if ignored else 0, self.classes, (size[0] // 4 + 1, size[1] // 4 + 1))
        label = np.kron(patches, np.ones((4, 4), np.int64))[: size[0], : size[1]]
        self.labels.setdefault(split, {})[name] = label
        values = np.array([*ids])[np.maximum(label, 0)]
        return np.where(label == IGNORED, self.rng.choice([*ignored], label.shape), values) if ignored else values

    def picture(self, split: str, name: str, path: Path, size=(HEIGHT, WIDTH)) -> None:
        smooth = self.rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth).resize(size[::-1], Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)
        self.images.setdefault(split, {})[name] = path

    def finish(self, *archives: Path) -> Miniature:
        return Miniature(self.dataset, archives, self.tree, self.images, self.labels)


def _voc_2010(made: _Maker, pictures: int, ids, ignored) -> dict:
    """Images, and the content of trainval_merged.json; a picture of no split is among the images."""
    top = made.tree / "VOCdevkit" / "VOC2010"
    merged: dict = {"images": [], "annos_segmentation": [], "categories": [], "parts": []}
    for split, phase, year in (("train", "train", 2008), ("eval", "val", 2010), ("", "test", 2009)):
        for index in range(pictures if split else 1):
            name = f"{year}_{index + 2:06}"
            number = int(name.replace("_", ""))
            values = made.draw(split, name, ids, ignored)
            made.picture(split, name, top / "JPEGImages" / f"{name}.jpg")
            about = {"file_name": f"{name}.jpg", "image_id": number, "height": HEIGHT, "width": WIDTH, "phase": phase}
            merged["images"].append(about)
            merged["annos_segmentation"] += _segments(number, values, zipped=index % 2 == 0)
    del made.labels[""], made.images[""]
    made.rng.shuffle(merged["images"])
    return merged


def _segments(image_id: int, values: np.ndarray, zipped: bool) -> list[dict]:
    """First the whole picture in one category, then the others over it."""
    present = np.unique(values)
    inside = [np.ones_like(values, bool), *(values == value for value in present[1:])]
    return [
        {
            "image_id": image_id,
            "category_id": int(value),
            "segmentation": {
                "size": list(values.shape),
                "counts": compressed_runs(mask) if zipped else plain_runs(mask),
            },
        }
        for value, mask in zip(present, inside, strict=True)
    ]


def _make_voc(made: _Maker, pictures: int, ids, ignored) -> Miniature:
    top = made.tree / "VOCdevkit" / "VOC2012"
    lists = top / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = [f"2007_{index + 33:06}" for index in range(pictures)]
    for index, name in enumerate([*names, "2007_000001"]):
        values = made.draw("eval", name, ids, ignored)
        if name == names[-1]:
            values[:] = VOC_BACKGROUND
            made.labels["eval"][name][:] = len(ids) - 1 if VOC_BACKGROUND in ids else IGNORED
        made.picture("eval", name, top / "JPEGImages" / f"{name}.jpg")
        _save(values.astype(np.uint8), top / "SegmentationClassAug" / f"{name}.png", palette=index % 2 == 0)
        _save(values.astype(np.uint8) // 2, top / "SegmentationClass" / f"{name}.png", palette=True)
    if (made.labels["eval"][names[-1]] == IGNORED).all():
        del made.labels["eval"][names[-1]], made.images["eval"][names[-1]]
    del made.labels["eval"]["2007_000001"], made.images["eval"]["2007_000001"]  # of the training list
    (lists / "val.txt").write_text("\n".join(names) + "\n")
    (lists / "train.txt").write_text("2007_000001\n")
    masks = _zip(made.tree.parent / "SegmentationClassAug.zip", top, "SegmentationClassAug")
    _add_resource_fork(masks, f"SegmentationClassAug/._{names[0]}.png")
    return made.finish(_tar_images(made, "VOC2012", made.tree.parent / "VOCtrainval_11-May-2012.tar"), masks)


def _tar_images(made: _Maker, year: str, path: Path) -> Path:
    """VOC's own tar, which holds neither the later label files nor those of others."""
    top = made.tree / "VOCdevkit" / year
    with tarfile.open(path, "w") as archive:
        for name in ("JPEGImages", "ImageSets", "SegmentationClass"):
            if (top / name).exists():
                archive.add(top / name, f"VOCdevkit/{year}/{name}")
    return path


def _tar(path: Path, parent: Path, name: str, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(parent / name, name)
    return path


def _zip(path: Path, parent: Path, below: str = ".") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((parent / below).rglob("*")):
            archive.write(file, file.relative_to(parent))
    return path


def _add_resource_fork(path: Path, name: str) -> None:
    """What a Mac leaves in the zips that it makes."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"__MACOSX/{name}", b"resource fork")


def _copy(file: Path, folder: Path) -> Path:
    return Path(shutil.copy(file, folder))


def _save(values: np.ndarray, path: Path, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette([channel for index in range(256) for channel in (index * 37 % 256, 255 - index, index)])
    image.save(path, "PNG")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
