"""Images and masks in two folders, matched by relative path without the file ending."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dinov3seg_jax.data.images import SUFFIXES, read_image
from dinov3seg_jax.errors import UserError

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff"})

IGNORED = -1
_UNKNOWN = -2


class ImageFolder:
    """A random-access source of images with masks, in the order of their names."""

    def __init__(
        self, images: Path, masks: Path, class_of_id: Mapping[int, int], ignored_ids: Iterable[int] = ()
    ) -> None:
        """List both folders; no file is opened yet.

        Args:
            images: folder of pictures, with any subfolders.
            masks: folder of PNG or TIFF files under the same relative names: one channel of 8 or 16 bits, or a palette,
                of which the indices count.
            class_of_id: from the values in the masks, 0 .. 65535, to class indices.
            ignored_ids: values that stand for "no label"; what `class_of_id` lists is not ignored.

        Raises:
            UserError: A folder is missing, holds two files of one name, or a file has no partner.
        """
        image_files = _files_by_name(images, SUFFIXES, "images")
        mask_files = _files_by_name(masks, MASK_SUFFIXES, "masks")
        self._names = _paired_names(image_files, mask_files, images, masks)
        self._images, self._masks = image_files, mask_files
        self._table = np.full(2**16, _UNKNOWN, np.int32)
        self._table[list(ignored_ids)] = IGNORED
        self._table[list(class_of_id.keys())] = list(class_of_id.values())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """Read one pair.

        Returns:
            "image": uint8 [H, W, 3], RGB; "label": int32 [H, W], class indices, -1 where ignored; "name": the relative
            path without the ending, with forward slashes.

        Raises:
            IndexError: `index` is not within 0 .. len - 1.
            UserError: A file cannot be read, the sizes differ, or the mask holds a value that is not declared.
        """
        if not 0 <= index < len(self._names):
            raise IndexError(f"image {index} of {len(self._names)}")
        name = self._names[index]
        image = read_image(self._images[name])
        label = self._read_label(self._masks[name])
        if label.shape != image.shape[:2]:
            raise UserError(
                f"mask {self._masks[name]} has {label.shape[1]} x {label.shape[0]} pixels but image "
                f"{self._images[name]} has {image.shape[1]} x {image.shape[0]} (width x height); make them equal."
            )
        return {"image": image, "label": label, "name": name}

    def _read_label(self, path: Path) -> np.ndarray:
        ids = _read_ids(path)
        declared = (ids >= 0) & (ids < len(self._table))
        label = self._table[np.where(declared, ids, 0)]
        unknown = ~declared | (label == _UNKNOWN)
        if unknown.any():
            value = int(ids[unknown][0])
            raise UserError(f"mask {path} holds the value {value}, which is no class: declare it, or correct the mask.")
        return label


def _read_ids(path: Path) -> np.ndarray:
    """The values of a mask as stored, integer [H, W]."""
    try:
        with Image.open(path) as mask:
            mode, stored = mask.mode, str(mask.tile[0].args)
            ids = np.asarray(mask)
    except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
        reason = " ".join(str(error).split())
        raise UserError(f"mask {path} is missing or damaged ({reason}); save or copy it again.") from error
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise UserError(f"mask {path} is a picture of mode {mode}; save it with one channel of 8 or 16 bits.")
    if "L;2" in stored or "L;4" in stored:  # which Pillow scales up to 0 .. 255
        raise UserError(f"mask {path} stores fewer than 8 bits a pixel; save it with 8 or 16 bits.")
    return ids.astype(np.int64)


def _paired_names(
    image_files: Mapping[str, Path], mask_files: Mapping[str, Path], images: Path, masks: Path
) -> tuple[str, ...]:
    paired = image_files.keys() & mask_files.keys()
    if not paired:
        raise UserError(
            f"no image in {images} has a mask of the same name in {masks}; check that both belong together."
        )
    for name in sorted(image_files.keys() ^ mask_files.keys()):
        if name in image_files:
            raise UserError(f"image {image_files[name]} has no mask of its name in {masks}; add it or move the image.")
        raise UserError(f"mask {mask_files[name]} has no image of its name in {images}; add it or move the mask.")
    return tuple(sorted(paired))


def _files_by_name(folder: Path, suffixes: frozenset[str], what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"the folder {folder}, which should hold {what}, does not exist; check the data set's layout.")
    files: dict[str, Path] = {}
    for path in _walk(str(folder)):
        stem, suffix = os.path.splitext(os.path.relpath(path, folder))
        if suffix.lower() not in suffixes:
            continue
        name = stem.replace(os.sep, "/")
        if name in files:
            raise UserError(f"{files[name]} and {path} have the same name without the ending; remove one of them.")
        files[name] = Path(path)
    if not files:
        raise UserError(f"the folder {folder} holds no {what}; use files that end in {', '.join(sorted(suffixes))}.")
    return files


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path)
            else:
                yield entry.path
