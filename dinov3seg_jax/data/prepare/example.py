"""One example from the archives into its two files, and a count of its pixels.

Every file appears whole or not at all, the label last: where it is, the example is done.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dinov3seg_jax.data.benchmark_sets import BENCHMARKS, Benchmark
from dinov3seg_jax.data.label_maps import stray_value, to_classes
from dinov3seg_jax.data.orientation import UPRIGHT, fits, orientation, turn_mask, upright_size
from dinov3seg_jax.data.prepare.archives import file_on_disk, read_member
from dinov3seg_jax.data.prepare.decoding import decode_picture, shrink
from dinov3seg_jax.data.prepare.matching import Example
from dinov3seg_jax.data.prepare.recipes import RECIPES, Recipe
from dinov3seg_jax.data.transforms import IGNORED
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.visualize import encode


class Job(NamedTuple):
    """One example on its way, small enough to send to another process."""

    dataset: str
    out: Path
    split: str
    example: Example


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    split: str
    name: str
    pixels: np.ndarray  # int64 [classes]
    ignored_pixels: int
    left_out: bool


def finish(job: Job) -> Outcome:
    """Write an example unless it is there, and count its pixels."""
    benchmark, recipe = BENCHMARKS[job.dataset], RECIPES[job.dataset]
    try:
        label = _read_finished(job)
        if label is None:
            label = _convert(job, benchmark, recipe)
    except OSError as error:
        raise unwritable(job.out, error) from None
    ignore = stored_ignore(benchmark)
    counts = np.bincount(label.ravel(), minlength=ignore + 1)
    labelled = counts[: benchmark.class_count]
    left_out = recipe.leave_out_unlabelled and not labelled.any()
    return Outcome(job.split, job.example.name, labelled, int(counts[ignore]), left_out)


def stored_ignore(benchmark: Benchmark) -> int:
    """What stands for "no label" in prepared files."""
    return 2**8 - 1 if benchmark.class_count < 2**8 else 2**16 - 1


def unwritable(out: Path, error: OSError) -> UserError:
    """The sentence for a disk that takes no more."""
    return UserError(
        f"'{out}' cannot be written ({reason(error)}); make room or choose another --out, and run it again."
    )


def _read_finished(job: Job) -> np.ndarray | None:
    image, label = _paths(job)
    if not (label.exists() and image.exists()):
        return None
    try:
        with Image.open(label) as stored:
            return np.asarray(stored)
    except (OSError, SyntaxError):  # of a disk that lost what it had taken
        return None


def _convert(job: Job, benchmark: Benchmark, recipe: Recipe) -> np.ndarray:
    """Write an example's two files, unless it is to be left out; the label as stored."""
    example = job.example
    content = read_member(example.image)
    picture = decode_picture(content, example.image)
    values = recipe.read_label(example.label)
    shape, turned = upright_size(picture), orientation(picture)
    if not fits(values.shape, UPRIGHT, shape, turned):
        raise UserError(
            f"{example.image} has {shape[1]} x {shape[0]} pixels, but its labels {values.shape[1]} x {values.shape[0]} "
            "(width x height); get both again."
        )
    stray = stray_value(values, benchmark.label_map)
    if stray is not None:
        raise UserError(
            f"the labels of {example.image} hold the value {stray}, which is none of {job.dataset}; get them again."
        )
    label = _to_stored(to_classes(values, benchmark.label_map), benchmark)
    file = file_on_disk(example.image)
    if benchmark.shrink_short_side and min(label.shape) > benchmark.shrink_short_side:
        upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        pixels, label = shrink(upright, turn_mask(label, UPRIGHT, shape, turned), benchmark.shrink_short_side)
        content, file = encode(Image.fromarray(pixels), "JPEG"), None  # at quality 75, as the field's preparation
    if recipe.leave_out_unlabelled and (label == stored_ignore(benchmark)).all():
        return label
    image_path, label_path = _paths(job)
    _place(file, content, image_path)
    write_whole(label_path, encode(Image.fromarray(label)))
    return label


def _to_stored(classes: np.ndarray, benchmark: Benchmark) -> np.ndarray:
    ignore = stored_ignore(benchmark)
    return np.where(classes == IGNORED, ignore, classes).astype(np.uint8 if ignore < 2**8 else np.uint16)


def _paths(job: Job) -> tuple[Path, Path]:
    image = f"{job.example.name}{Path(job.example.image.name).suffix}"
    return job.out / "images" / job.split / image, job.out / "labels" / job.split / f"{job.example.name}.png"


def _place(file: Path | None, content: bytes, target: Path) -> None:
    """Link to a file, or where that is not possible write its content; whole or not at all."""
    if file is not None:
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # another disk, or one that knows no links
            os.link(file, temporary)
            os.replace(temporary, target)
            temporary.unlink(missing_ok=True)  # stays if both are the same file
            return
    write_whole(target, content)
