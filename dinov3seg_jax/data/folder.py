"""Images and masks in two folders, matched by relative path without the file ending."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from dinov3seg_jax.data.images import SUFFIXES, open_picture, read_header, read_turned
from dinov3seg_jax.data.masks import ANY_BITS, Mask, MaskReader
from dinov3seg_jax.data.orientation import UPRIGHT, fits, turn_mask
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.folders import files_below
from dinov3seg_jax.places import is_remote

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff"})


class ImageFolder:
    """A random-access source of images with masks, in the order of their names."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        class_of_id: Mapping[int, int],
        ignored_ids: Iterable[int] = (),
        bits: tuple[int, ...] = ANY_BITS,
        shared_images: bool = False,
    ) -> None:
        """List both folders; no file is opened yet.

        Args:
            images: folder of pictures, with any subfolders.
            masks: folder of PNG or TIFF files under the same relative names.
            class_of_id: what the values in the masks mean; this and the next two as for `masks.MaskReader`.
            ignored_ids: values that stand for "no label".
            bits: how wide a stored value may be.
            shared_images: The folder of pictures holds other splits too: those without a mask are passed over.

        Raises:
            UserError: A folder is missing, holds two files of one name, or a file has no partner.
        """
        image_files = files_by_name(images, SUFFIXES, "images")
        mask_files = files_by_name(masks, MASK_SUFFIXES, "masks")
        if shared_images:
            image_files = {name: image_files[name] for name in image_files.keys() & mask_files.keys()} or image_files
        self._names = paired_names(image_files, mask_files, images, masks)
        self._images, self._masks = image_files, mask_files
        self.reader = MaskReader(class_of_id, ignored_ids, bits)

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
        name, image_file, mask_file = self.files(index)
        image, turned = read_turned(image_file, str(image_file))
        mask = self.reader.open(mask_file, str(mask_file))
        label = beside(image.shape[:2], turned, str(image_file), mask, self.reader.label(mask))
        return {"image": image, "label": label, "name": name}

    def mask(self, index: int) -> Mask:
        """The mask of a pair, checked against the header of its picture.

        Raises:
            UserError: A file cannot be read, or the sizes differ.
        """
        _, image_file, mask_file = self.files(index)
        mask = self.reader.open(mask_file, str(mask_file))
        refuse_other_header(image_file, str(image_file), mask)
        return mask

    def files(self, index: int) -> tuple[str, Path, Path]:
        """The name of an example, and its picture and mask on disk."""
        if not 0 <= index < len(self._names):
            raise IndexError(f"image {index} of {len(self._names)}")
        name = self._names[index]
        return name, self._images[name], self._masks[name]


def beside(picture: tuple[int, ...], turned: int, picture_name: str, mask: Mask, label: np.ndarray) -> np.ndarray:
    """The label of a mask, int32 [H, W], the same way up as its picture; see `data.orientation`.

    Args:
        picture: height and width of the upright picture.
        turned: how it was, 1 to 8.
        picture_name: what an error calls it.
        mask: where the label comes from.
        label: of the mask as it was read.

    Raises:
        UserError: The sizes differ.
    """
    refuse_other_size(picture, turned, picture_name, mask)
    return turn_mask(label, mask.own, picture, turned)


def refuse_other_size(picture: tuple[int, ...], turned: int, picture_name: str, mask: Mask) -> None:
    """Raise a `UserError` where a mask is not as large as its picture; arguments as for `beside`."""
    if not fits(mask.shape, mask.own, picture, turned):
        raise UserError(
            f"mask {mask.name} has {mask.shape[1]} x {mask.shape[0]} pixels but image {picture_name} has "
            f"{picture[1]} x {picture[0]} (width x height); make them equal."
        )


def refuse_other_header(picture: Path | bytes, name: str, mask: Mask) -> None:
    """The same by a picture's file, or its bytes, of which no more is read than it takes.

    Raises:
        UserError: also where the header cannot be read.
    """
    as_stored: tuple[int, ...] = ()
    with contextlib.suppress(UserError), open_picture(picture, name) as image:  # others than Pillow may read it
        as_stored = image.height, image.width
    if mask.own != UPRIGHT or mask.shape != as_stored:
        refuse_other_size(*read_header(picture, name), name, mask)


def paired_names(
    image_files: Mapping[str, Path], mask_files: Mapping[str, Path], images: Path, masks: Path
) -> tuple[str, ...]:
    """The names that both have, sorted.

    Raises:
        UserError: A file has no partner.
    """
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


def files_by_name(folder: Path, suffixes: frozenset[str], what: str) -> dict[str, Path]:
    """Files below a folder, by their relative path without the ending; hidden ones and other endings are passed over.

    Raises:
        UserError: The folder is missing, holds no such file, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"the folder {folder}, which should hold {what}, does not exist; check the data set's layout.")
    files: dict[str, Path] = {}
    for path, below in _in_bucket(folder) if is_remote(folder) else _on_disk(folder):
        stem, suffix = os.path.splitext(below)
        if suffix.lower() not in suffixes:
            continue
        name = stem.replace(os.sep, "/")
        if name in files:
            raise UserError(f"{files[name]} and {path} have the same name without the ending; remove one of them.")
        files[name] = path
    if not files:
        raise UserError(f"the folder {folder} holds no {what}; use files that end in {', '.join(sorted(suffixes))}.")
    return files


def _on_disk(folder: Path) -> Iterator[tuple[Path, str]]:
    return ((Path(path), os.path.relpath(path, folder)) for path in _walk(str(folder)))


def _in_bucket(folder: Path) -> Iterator[tuple[Path, str]]:
    for below, path in files_below(folder, keep=True).items():  # since they are read again in each epoch
        if not any(part.startswith(".") for part in below.split("/")):
            yield path, below


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path)
            else:
                yield entry.path
