"""COCO's instances as one semantic map: a JSON file of polygons and run lengths, as annotation tools export it.

Where instances overlap, the smaller one is on top, whatever their order in the file; of two of one size, the later.
Crowd regions belong to their category too, and lie below all else.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool

from dinov3seg_jax.data.folder import beside, refuse_other_header
from dinov3seg_jax.data.images import MAX_PIXELS, read_turned
from dinov3seg_jax.data.masks import UNLABELLED, IndexReader, Mask
from dinov3seg_jax.data.orientation import UPRIGHT
from dinov3seg_jax.data.run_lengths import decode_runs
from dinov3seg_jax.errors import UserError, note, one_line
from dinov3seg_jax.folders import files_below
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.places import is_remote

FOLDERS = ("", "images", "data", "images/{split}", "{split}", "images/default", "images/{split}2017", "{split}2017")


class CocoImages:
    """A random-access source of the pictures that a file of instances lists, in the order of their names."""

    def __init__(self, root: Path, annotations: Path, split: str, background: str = "") -> None:
        """Read the list; no picture is opened yet.

        Args:
            root: folder of the data set; pictures lie there, in one of `FOLDERS`, or beside the list.
            annotations: the JSON file, with "images", "annotations" and "categories".
            split: its name, which folders of pictures may have.
            background: the class of all that no instance covers. Without it those pixels are ignored, and pictures
                without an instance left out. It may be a category's name.

        Raises:
            UserError: the file is no such list, contradicts itself, or names pictures that are not there.
        """
        self._coder = "pycocotools.mask"
        needed(self._coder, "formats", "the data set coco_json")
        self._where, content = annotations, _read(annotations)
        categories = sorted(_listed(content, "categories", annotations), key=_number("id", "category", annotations))
        names = [_text(category, "name", "category", annotations) for category in categories]
        for kind, values in (("id", [category["id"] for category in categories]), ("name", names)):
            _refuse_twice(values, f"the category {kind}", annotations)
        if background and background not in names:
            names.append(background)
        if not names:
            raise UserError(f"{annotations} lists no categories; export it anew, with its classes.")
        self.names = tuple(names)
        self.reader = IndexReader(len(names))
        self._background = names.index(background) + 1 if background else UNLABELLED
        self._value = {category["id"]: index + 1 for index, category in enumerate(categories)}
        self._list_pictures(content, root, split)

    def _list_pictures(self, content: Mapping[str, Any], root: Path, split: str) -> None:
        where = self._where
        images = _listed(content, "images", where)
        ids = [_number("id", "image", where)(image) for image in images]
        _refuse_twice(ids, "the image id", where)
        instances = defaultdict(list)
        for instance in _listed(content, "annotations", where):
            instances[_number("image_id", "annotation", where)(instance)].append(self._checked(instance))
        if unknown := sorted(instances.keys() - set(ids)):
            raise UserError(f"{where} annotates the image {unknown[0]}, which it does not list; export it anew.")
        files = {image["id"]: _text(image, "file_name", "image", where).replace("\\", "/") for image in images}
        _refuse_twice(files.values(), "the picture", where)
        kept = [image for image in images if self._background or instances[image["id"]]]
        if empty := len(images) - len(kept):
            note(
                f"{empty} of {len(images)} pictures of {where} have no annotation and are left out; to train on them "
                "too, name what they show with data.train.background"
            )
        if not kept:
            raise UserError(f"{where} holds no annotation of any picture; annotate some, or export it anew.")
        kept.sort(key=lambda image: files[image["id"]])
        self._files = [files[image["id"]] for image in kept]
        self._sizes = [_size(image, where) for image in kept]
        # As bytes, since worker processes get a copy of all of it.
        self._instances = [json.dumps(instances[image["id"]]).encode() for image in kept]
        self._pictures = list(_found(self._files, root, split, where))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """Read one picture and draw its label; as `folder.ImageFolder` does."""
        name, picture, _ = self.files(index)
        image, turned = read_turned(picture, str(picture))
        mask = self._drawn(index)
        label = beside(image.shape[:2], turned, str(picture), mask, self.reader.label(mask))
        return {"image": image, "label": label, "name": name}

    def mask(self, index: int) -> Mask:
        """As `folder.ImageFolder` does; the values are class indices plus one, as `reader` knows."""
        mask = self._drawn(index)
        refuse_other_header(self._pictures[index], str(self._pictures[index]), mask)
        return mask

    def files(self, index: int) -> tuple[str, Path, Path]:
        """The name of an example, its picture, and the list of instances."""
        if not 0 <= index < len(self._files):
            raise IndexError(f"image {index} of {len(self._files)}")
        return self._files[index].rpartition(".")[0] or self._files[index], self._pictures[index], self._where

    def _checked(self, instance: Mapping[str, Any]) -> tuple[Any, int, bool, Any]:
        """What is kept of an annotation: its id, value in masks, whether it is a crowd, and its shape."""
        number, category, shape = instance.get("id"), instance.get("category_id"), instance.get("segmentation")
        if not isinstance(category, int) or category not in self._value:
            raise UserError(
                f"annotation {number} of {self._where} is of the category {category!r}, which the file does not list; "
                "export it anew."
            )
        if not shape:
            raise UserError(
                f"annotation {number} of {self._where} has no segmentation, as a box alone has none; draw its outline, "
                "or delete it."
            )
        return number, self._value[category], bool(instance.get("iscrowd")), shape

    def _drawn(self, index: int) -> Mask:
        height, width = self._sizes[index]
        values = np.full((height, width), self._background, np.uint16)
        instances = [
            (not crowd, value, self._region(shape, height, width, number))
            for number, value, crowd, shape in json.loads(self._instances[index])
        ]
        instances.sort(key=lambda one: (one[0], -np.count_nonzero(one[2])))
        for _, value, region in instances:
            values[region] = value
        return Mask(f"of {self._files[index]} in {self._where}", values, 16, UPRIGHT)

    def _region(self, shape: Any, height: int, width: int, number: Any) -> Bool[np.ndarray, "h w"]:
        coder = needed(self._coder, "formats", "the data set coco_json")
        what = f"the segmentation of annotation {number} in {self._where}"
        if isinstance(shape, dict):
            size, counts = shape.get("size"), shape.get("counts")
            if size != [height, width]:
                raise UserError(f"{what} is of a picture of {size}, not of {[height, width]}; export it anew.")
            if not isinstance(counts, list | str):
                raise UserError(f"{what} has no run lengths; export it anew.")
            try:
                return decode_runs(counts, height, width)
            except ValueError:
                raise UserError(
                    f"{what} is damaged: its run lengths do not cover its picture; export it anew."
                ) from None
        if not isinstance(shape, list) or not all(_is_polygon(ring) for ring in shape):
            raise UserError(f"{what} is no list of polygons of at least three points; correct it, or export it anew.")
        if max(abs(number) for ring in shape for number in ring) > 10 * max(height, width):
            raise UserError(f"{what} runs far out of its picture; correct it, or export it anew.")
        rings = coder.frPyObjects([[float(number) for number in ring] for ring in shape], height, width)
        return decode_runs(coder.merge(rings)["counts"].decode(), height, width)


def find_annotations(root: Path, split: str) -> Path:
    """The list of a split: where COCO, CVAT, Roboflow, Label Studio and FiftyOne write it; or the only one there is.

    Raises:
        UserError: there is none, or it is not clear which one is meant.
    """
    if root.is_file():
        return root
    names = (f"instances_{split}.json", f"instances_{split}2017.json", f"{split}.json", "_annotations.coco.json")
    for folder in (root / "annotations", root / split, root):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    others = [path for folder in (root / "annotations", root) for path in sorted(folder.glob("*.json"))]
    if len(others) == 1 and split == "train":
        return others[0]
    have = (
        f"there are {', '.join(str(path.relative_to(root)) for path in others[:5])}" if others else "there is no other"
    )
    raise UserError(
        f"{root / 'annotations' / names[0]} does not exist (there is {have}); rename the split's list to that, or "
        "name the file itself as root."
    )


def _found(files: Iterable[str], root: Path, split: str, annotations: Path) -> Iterator[Path]:
    """Where each picture lies; most lie where the one before does."""
    top = root if root.is_dir() else root.parent
    tops = dict.fromkeys([top, annotations.parent, annotations.parent.parent])
    places = list(dict.fromkeys(above / folder.format(split=split) for above in tops for folder in FOLDERS))
    listed: dict[Path, dict[str, Path]] = {}
    for file in files:
        place, picture = next(((place, found) for place in places if (found := _at(place, file, listed))), (None, None))
        if place is None or picture is None:
            raise UserError(
                f"the picture {file} that {annotations} lists is neither in {places[0]} nor in its folders images, "
                f"data and {split}; put it there, or export the list anew."
            )
        places.remove(place)
        places.insert(0, place)
        yield picture


def _at(place: Path, file: str, listed: dict[Path, dict[str, Path]]) -> Path | None:
    """A file in a folder, if it is there; a folder in a bucket is listed once, and `listed` has what it holds."""
    if not is_remote(place):
        return place / file if (place / file).is_file() else None
    if place not in listed:
        listed[place] = files_below(place, keep=True)
    return listed[place].get(PurePosixPath(file).as_posix())


def _is_polygon(ring: Any) -> bool:
    numbers = isinstance(ring, list) and all(isinstance(n, int | float) and np.isfinite(n) for n in ring)
    return numbers and len(ring) >= 6 and len(ring) % 2 == 0


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error, 200)}); export it anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no list of COCO's instances; export it in the format COCO.")
    return content


def _listed(content: Mapping[str, Any], key: str, where: Path) -> list[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where} has no list '{key}', as COCO's instances have; export it in the format COCO.")
    return entries


def _number(key: str, kind: str, where: Path) -> Callable[[Mapping[str, Any]], int]:
    """Reads a whole number of an entry."""

    def read(entry: Mapping[str, Any]) -> int:
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"an {kind} of {where} has {value!r} as {key}, which is no whole number; export it anew.")
        return value

    return read


def _size(image: Mapping[str, Any], where: Path) -> tuple[int, int]:
    height, width = (_number(side, "image", where)(image) for side in ("height", "width"))
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise UserError(f"{where} says that the image {image['id']} has {width} x {height} pixels; export it anew.")
    return height, width


def _text(entry: Mapping[str, Any], key: str, kind: str, where: Path) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{kind} {entry['id']} of {where} has no {key}; correct it, or export it anew.")
    return value


def _refuse_twice(values: Collection[Any], what: str, where: Path) -> None:
    value, uses = Counter(values).most_common(1)[0] if values else (None, 0)
    if uses > 1:
        raise UserError(f"{where} lists {what} {value!r} {uses} times; keep one.")
