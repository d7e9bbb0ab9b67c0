"""COCO's panoptic segmentation as downloaded: pictures, PNG files of segment numbers, and a list of segments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from dinov3seg_jax.data.folder import beside, files_by_name, paired_names, refuse_other_header
from dinov3seg_jax.data.images import SUFFIXES, open_picture, read_turned
from dinov3seg_jax.data.masks import Mask, MaskReader
from dinov3seg_jax.data.orientation import orientation, turn
from dinov3seg_jax.data.transforms import IGNORED
from dinov3seg_jax.errors import UserError, one_line

NO_SEGMENT = 0


class PanopticFolder:
    """A random-access source of images with semantic labels, in the order of their names."""

    def __init__(self, images: Path, segments: Path, annotations: Path) -> None:
        """Read the list of segments; no picture is opened yet.

        Args:
            images: folder of pictures.
            segments: folder of 8-bit RGB PNG files; a pixel's segment is R + 256 G + 65536 B, 0 is none.
            annotations: "panoptic_<split>.json", with "categories" and "annotations".

        Raises:
            UserError: Files are missing or do not fit together.
        """
        content = _read_json(annotations)
        self._images = files_by_name(images, SUFFIXES, "images")
        self._segments = files_by_name(segments, frozenset({".png"}), "segments")
        self._names = paired_names(self._images, self._segments, images, segments)
        self._where = annotations
        try:
            categories = sorted(content["categories"], key=lambda category: category["id"])
            self.names = tuple(str(category["name"]) for category in categories)
            self.reader = MaskReader({position + 1: position for position in range(len(categories))}, (0,))
            index = {category["id"]: position for position, category in enumerate(categories)}
            by_name = {Path(entry["file_name"]).stem: entry["segments_info"] for entry in content["annotations"]}
            if absent := [name for name in self._names if name not in by_name]:
                raise UserError(f"{annotations} does not list the image {absent[0]}; take the file of this split.")
            # Flat arrays, since worker processes get a copy of all of it.
            listed = [by_name[name] for name in self._names]
            self._ends = np.cumsum([len(segments_of_one) for segments_of_one in listed])
            pairs = [(segment["id"], index[segment["category_id"]]) for one in listed for segment in one]
            self._ids, self._classes = np.array(pairs, np.int32).reshape(-1, 2).T
        except (KeyError, TypeError) as error:
            raise UserError(f"{annotations} is no list of panoptic segments ({error}); copy it again.") from error

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """Read one pair; as `ImageFolder` does."""
        if not 0 <= index < len(self._names):
            raise IndexError(f"image {index} of {len(self._names)}")
        name = self._names[index]
        image, turned = read_turned(self._images[name], str(self._images[name]))
        segments = read_segments(self._segments[name])
        label = beside(image.shape[:2], turned, str(self._images[name]), segments, self._label(segments, index))
        return {"image": image, "label": label, "name": name}

    def files(self, index: int) -> tuple[str, Path, Path]:
        """The name of an example, and its picture and segments on disk."""
        name = self._names[index]
        return name, self._images[name], self._segments[name]

    def mask(self, index: int) -> Mask:
        """As `ImageFolder` does; the values are class indices plus one, 0 where there is none, as `reader` knows."""
        name = self._names[index]
        segments = read_segments(self._segments[name])
        refuse_other_header(self._images[name], str(self._images[name]), segments)
        return segments._replace(values=self._label(segments, index) - IGNORED)

    def _label(self, mask: Mask, index: int) -> Int32[np.ndarray, "h w"]:
        segments = mask.values
        own = slice(self._ends[index - 1] if index else 0, self._ends[index])
        ids, classes = np.append(self._ids[own], NO_SEGMENT), np.append(self._classes[own], np.int32(IGNORED))
        order = np.argsort(ids)
        ids, classes = ids[order], classes[order]
        places = np.minimum(np.searchsorted(ids, segments), len(ids) - 1)
        unknown = ids[places] != segments
        if unknown.any():
            raise UserError(
                f"{mask.name} holds the segment {segments[unknown][0]}, which {self._where} does not list; "
                "take both from one release."
            )
        return classes[places]


def read_segments(path: Path) -> Mask:
    """Segment numbers, 0 where there is none.

    Raises:
        UserError: The file cannot be read or is no RGB picture.
    """
    with open_picture(path, str(path)) as picture:
        if picture.mode != "RGB":
            raise UserError(f"{path} is a picture of mode {picture.mode}, not RGB; take the official panoptic files.")
        try:
            own = orientation(picture)
            colours = turn(np.asarray(picture).astype(np.int32), own)
        except Exception as error:  # decoders raise a dozen kinds of errors on damaged bytes
            reason = one_line(error)
            raise UserError(f"{path} is truncated or damaged ({reason}); copy it again.") from error
    return Mask(str(path), colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2], 24, own)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; unpack the panoptic annotations there.") from None
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{path} cannot be read ({reason}); copy it again.") from error
