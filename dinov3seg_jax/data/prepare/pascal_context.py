"""Pascal-Context: the images of VOC 2010; 59 classes from trainval_merged.json, 459 from a MATLAB file for each."""

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import Int
from PIL import Image

from dinov3seg_jax.data.prepare.archives import INDEX_BYTES, Member, read_member
from dinov3seg_jax.data.prepare.matching import Listing, pair, read_list, select
from dinov3seg_jax.data.run_lengths import decode_runs
from dinov3seg_jax.errors import UserError, reason

OTHER_YEAR = r"VOC(?!2010)\d{4}"
IMAGES = r"JPEGImages/(?P<name>[^/]+)\.jpg"
MERGED = r"(?P<name>trainval_merged)\.json"
VARIABLE = "LabelMap"


@dataclass(frozen=True)
class Segments:
    """The segments of one image, in the order in which they are painted."""

    place: str  # for messages
    height: int
    width: int
    segments: tuple[tuple[int, str | tuple[int, ...]], ...]  # each a category and its runs, see `decode_runs`


def list_59(members: Sequence[Member], split: str) -> Listing:
    """The images that trainval_merged.json says are of the phase "train" or "val", with their segments."""
    labels = _read_merged(members, split) or {}
    return pair(select(members, IMAGES, OTHER_YEAR), labels, labels)


def list_459(members: Sequence[Member], split: str) -> Listing:
    """The images that pascalcontext_<split>.txt names; without that file, those of trainval_merged.json."""
    names = read_list(members, rf"(?P<name>pascalcontext_{split})\.txt", OTHER_YEAR)
    return pair(
        select(members, IMAGES, OTHER_YEAR),
        select(members, r"trainval/(?P<name>[^/]+)\.mat", OTHER_YEAR),
        names or _read_merged(members, split) or (),
    )


def paint(label: Segments) -> Int[np.ndarray, "h w"]:
    """Category ids, 0 where there is none; later segments cover earlier ones.

    Raises:
        UserError: A segment's runs do not fill the image.
    """
    values = np.zeros((label.height, label.width), np.int32)
    for category, runs in label.segments:
        try:
            inside = decode_runs(runs, label.height, label.width)
        except ValueError as error:
            raise UserError(f"a segment of {label.place} {error}; get the file again.") from None
        values[inside] = category
    return values


def read_label_map(label: Member) -> Int[np.ndarray, "h w"]:
    """The variable LabelMap of a MATLAB file; only its header is read before its size is known to be sensible.

    Raises:
        UserError: The file is damaged, lacks the variable, or holds it with 8 bits, which cannot hold 459 values.
    """
    content = read_member(label)
    try:
        described = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(io.BytesIO(content))}
        shape, kind = described.get(VARIABLE, ((), ""))
        _check_label_map(label, shape, kind)
        values = scipy.io.loadmat(io.BytesIO(content), variable_names=[VARIABLE])[VARIABLE]
        whole = values.astype(np.int32)
        if (whole != values).any():
            raise UserError(f"{label} holds fractions, not class numbers; get the official file.")
    except UserError:
        raise
    except Exception as error:  # its readers raise a dozen kinds of errors on damaged bytes
        raise UserError(f"{label} is truncated or damaged ({reason(error)}); get it again.") from None
    return whole


def _check_label_map(label: Member, shape: tuple[int, ...], kind: str) -> None:
    if not shape:
        raise UserError(f"{label} holds no variable '{VARIABLE}'; get the official file.")
    if len(shape) != 2 or np.prod(shape, dtype=object) > (Image.MAX_IMAGE_PIXELS or 0):
        raise UserError(f"'{VARIABLE}' of {label} claims the size {shape}; get the official file.")
    if kind in ("int8", "uint8", "logical"):
        raise UserError(f"'{VARIABLE}' of {label} has 8 bits where 16 are expected; get the official file.")


def _read_merged(members: Sequence[Member], phase: str) -> dict[str, Segments] | None:
    """The segments of each image of a phase, by the image's name; None if there is no such file."""
    file = next(iter(select(members, MERGED, OTHER_YEAR).values()), None)
    if file is None:
        return None
    try:
        content: dict[str, Any] = json.loads(read_member(file, INDEX_BYTES))
        segments = defaultdict(list)
        for entry in content["annos_segmentation"]:
            runs = entry["segmentation"]["counts"]
            kept = runs if isinstance(runs, str) else tuple(runs)
            segments[entry["image_id"]].append((int(entry["category_id"]), kept))
        return {
            image["file_name"].removesuffix(".jpg"): Segments(
                f"'{image['file_name']}' in {file}",
                int(image["height"]),
                int(image["width"]),
                tuple(segments[image["image_id"]]),
            )
            for image in content["images"]
            if image["phase"] == phase
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged, or another file ({reason(error)}); get the official one.") from None
