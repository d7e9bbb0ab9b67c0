"""Many pictures: some are read while others are segmented and others written, in memory for a few batches of them."""

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dinov3seg_jax.data.images import open_picture, read_image
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference import huge
from dinov3seg_jax.inference.finished import Picture
from dinov3seg_jax.inference.local_global import resized_size
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.segmenter import Segmenter

THREADS = 4  # that read, and as many that write
BATCHES_AHEAD = 2  # are read while one is segmented
BATCHES_LOOKED_AT = 8  # among their pictures, those of one size go together

ORIENTATION = 0x0112  # in EXIF: 5 to 8 turn a picture on its side

Shape = tuple[int, int] | str  # what the pictures of a batch share: their resized size, or one of these words
HUGE, UNREADABLE = "huge", "unreadable"


class Outcome(NamedTuple):
    """What became of one picture."""

    picture: Picture
    summary: dict[str, Any] | None  # see `Segmentation.summary`; None where it failed
    error: str = ""  # one sentence


def segment_pictures(
    model: Segmenter,
    names: Sequence[str],
    pictures: Sequence[Picture],
    wanted: Collection[Picture],
    batch_size: int,
    memory: int,
) -> Iterator[Outcome]:
    """Segment pictures and write their results; one that cannot be read or written stops none of the others.

    Batches depend on `pictures` alone. So results are the same to the last bit, however often a run was interrupted:
    a batch of which some are wanted runs as a whole, and what is not wanted of it is dropped.

    Args:
        model: any.
        names: that `model.check_names` returned.
        pictures: all of the run, in an order that is the same each time.
        wanted: those that have no results yet.
        batch_size: pictures that run together.
        memory: bytes that the process may take; a picture that needs more goes through `huge.segment_file`.

    Yields:
        One outcome for each wanted picture, when its results are on disk.
    """
    with _pool() as readers, _pool() as writers:
        batches = _plan(pictures, wanted, batch_size, lambda picture: _shape(model, picture.path, memory), readers)
        reading = deque(_begin(readers, *batch) for batch in islice(batches, BATCHES_AHEAD))
        writing: deque[Future[Outcome]] = deque()
        while reading:
            batch, shape, images = reading.popleft()
            reading.extend(_begin(readers, *following) for following in islice(batches, 1))
            if shape == HUGE:
                found: Iterator[Any] = (_segment_huge(model, names, picture, wanted, memory) for picture in batch)
            else:
                found = iter(_segment(model, names, [image.result() for image in images], batch_size))
            for picture, result in zip(batch, found, strict=True):
                if picture in wanted:
                    writing.append(writers.submit(_write, picture, result))
            while len(writing) > max(batch_size, THREADS):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


def _plan(
    pictures: Sequence[Picture],
    wanted: Collection[Picture],
    batch_size: int,
    shape_of: Callable[[Picture], Shape],
    readers: ThreadPoolExecutor,
) -> Iterator[tuple[list[Picture], Shape]]:
    """The batches with a wanted picture, each of pictures of one shape that are not far from each other."""
    for start in range(0, len(pictures), BATCHES_LOOKED_AT * batch_size):
        near = pictures[start : start + BATCHES_LOOKED_AT * batch_size]
        if not any(picture in wanted for picture in near):
            continue
        alike: dict[Shape, list[Picture]] = {}
        for picture, shape in zip(near, readers.map(shape_of, near), strict=True):
            alike.setdefault(shape, []).append(picture)
        for shape, group in alike.items():
            for first in range(0, len(group), batch_size):
                batch = group[first : first + batch_size]
                if any(picture in wanted for picture in batch):
                    yield batch, shape


def _shape(model: Segmenter, path: Path, memory: int) -> Shape:
    """By its header. Where that misleads, as a damaged one can, a batch has pictures of two sizes, which is no harm."""
    try:
        if type(model) is Segmenter and huge.needs_streaming(path, memory):
            return HUGE
        with open_picture(path, str(path)) as image:
            width, height = image.size
            with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
                if image.getexif().get(ORIENTATION, 1) > 4:
                    width, height = height, width
    except UserError:
        return UNREADABLE
    return resized_size((height, width), model.config.inference, model.config.model.vision.patch_size)


def _begin(
    readers: ThreadPoolExecutor, batch: list[Picture], shape: Shape
) -> tuple[list[Picture], Shape, list[Future[UInt8[np.ndarray, "h w 3"] | UserError]]]:
    return batch, shape, [] if shape == HUGE else [readers.submit(_read, picture.path) for picture in batch]


def _read(path: Path) -> UInt8[np.ndarray, "h w 3"] | UserError:
    try:
        return read_image(path)
    except UserError as error:
        return error


def _segment(
    model: Segmenter,
    names: Sequence[str],
    images: Sequence[UInt8[np.ndarray, "h w 3"] | UserError],
    batch_size: int,
) -> list[Segmentation | UserError]:
    """The result of each picture; errors stay what they are."""
    readable = [image for image in images if not isinstance(image, UserError)]
    results = iter(model.segment_arrays(readable, names, batch_size))
    return [image if isinstance(image, UserError) else next(results) for image in images]


def _segment_huge(
    model: Segmenter, names: Sequence[str], picture: Picture, wanted: Collection[Picture], memory: int
) -> dict[str, Any] | UserError | None:
    if picture not in wanted:
        return None
    try:
        return huge.segment_file(model, picture.path, names, picture.target.parent, picture.target.name, memory)
    except UserError as error:
        return error


def _write(picture: Picture, result: Segmentation | dict[str, Any] | UserError) -> Outcome:
    if isinstance(result, Segmentation):
        try:
            result.save(picture.target.parent, picture.target.name, file=picture.path.name)
            result = result.summary()
        except UserError as error:
            result = error
    return Outcome(picture, None, str(result)) if isinstance(result, UserError) else Outcome(picture, result)


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that, when something went wrong, finish what they are at and begin nothing more."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
