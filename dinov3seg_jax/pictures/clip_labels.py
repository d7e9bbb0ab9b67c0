"""Labels of a video's frames on disk: an indexed PNG for each, or all of them in one file of NumPy's."""

import contextlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int
from PIL import Image

from dinov3seg_jax import visualize
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.inference.clips import SegmentedFrame

DIGITS = 7  # of a frame's name, so that names sort as frames do


def frame_file(folder: Path, number: int) -> Path:
    """Where the labels of a frame are."""
    return folder / f"{number:0{DIGITS}}.png"


def write_frame(folder: Path, frame: SegmentedFrame) -> None:
    """Write a frame's labels, as those of a picture are."""
    write_whole(frame_file(folder, frame.number), visualize.encode(frame.result._label_image()))


def read_frame(folder: Path, number: int) -> Int[np.ndarray, "h w"]:
    """The labels of a frame.

    Raises:
        UserError: they are not there any more.
    """
    path = frame_file(folder, number)
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except OSError as error:
        raise UserError(f"{path} is lost or damaged; add --overwrite to segment the video again") from error


def delete_frames(folder: Path) -> None:
    """Delete the labels of all frames, and the folder where nothing else is in it."""
    for path in folder.glob("[0-9]" * DIGITS + ".png"):
        path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_archive(file: BinaryIO, folder: Path, times: Mapping[int, float], names: Sequence[str]) -> None:
    """Write all labels as a file of NumPy's, one frame after the other.

    It holds `labels` [n, h, w], uint8 or, where names are many, uint16; `frames` [n], their numbers; `times` [n], in
    seconds; and `names` [t].

    Args:
        file: a new one, open for writing.
        folder: of the frames' labels.
        times: of the frames by their numbers, at least one.
        names: of the classes.
    """
    numbers = list(times)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        small = {"frames": numbers, "times": list(times.values()), "names": np.array(names, str)}
        for name, values in small.items():
            array = io.BytesIO()
            np.save(array, np.asarray(values))
            archive.writestr(f"{name}.npy", array.getvalue())
        with archive.open("labels.npy", "w", force_zip64=True) as labels:
            for place, number in enumerate(numbers):
                one = read_frame(folder, number)
                if place == 0:
                    described = {"descr": one.dtype.str, "fortran_order": False, "shape": (len(numbers), *one.shape)}
                    np.lib.format.write_array_header_1_0(labels, described)
                labels.write(one.tobytes())
