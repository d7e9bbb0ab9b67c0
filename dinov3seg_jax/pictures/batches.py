"""Many pictures: some are read while others are segmented and others written, in memory for a few batches of them."""

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from dinov3seg_jax.data.images import pixels_of
from dinov3seg_jax.data.paper import Pixels
from dinov3seg_jax.data.readers import in_reach
from dinov3seg_jax.data.scenes import AS_IT_IS, View, import_rasterio
from dinov3seg_jax.errors import UserError, note
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.inference.base import FLOAT_BYTES, BaseSegmenter
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import huge
from dinov3seg_jax.pictures.finished import ALONE, Picture
from dinov3seg_jax.pictures.rasters import look_at
from dinov3seg_jax.text.class_lists import ClassList, Names

THREADS = 4  # that read, and as many that write
BATCHES_AHEAD = 2  # are read while one is segmented
BATCHES_LOOKED_AT = 8  # among their pictures, those of one size go together

Shape = tuple[int, int] | str  # what the pictures of a batch share: their resized size, or one of these words
HUGE, UNREADABLE = "huge", "unreadable"


class Outcome(NamedTuple):
    """What became of one picture."""

    picture: Picture
    summary: dict[str, Any] | None  # see `Segmentation.summary`; None where it failed
    error: str = ""  # one sentence


class Look(NamedTuple):
    """What a picture's header says."""

    picture: Picture
    shape: Shape
    size: int  # bytes that it takes at most, from when it is read until it is written; of a huge one, all the room
    source: Path | bytes = b""  # where its pixels are read
    georeferenced: bool = False
    error: UserError | None = None


class Batch(NamedTuple):
    """Pictures of one shape that run together."""

    looks: list[Look]
    images: list[Future[Pixels | UserError]]  # being read; none of a huge one


def segment_pictures(
    model: BaseSegmenter,
    names: Names | ClassList,
    pictures: Sequence[Picture],
    wanted: Collection[Picture],
    batch_size: int,
    memory: int,
    view: View = AS_IT_IS,
    outputs: Outputs = ALONE,
) -> Iterator[Outcome]:
    """Segment pictures and write their results; one that cannot be read or written stops none of the others.

    Batches depend on `pictures` and `memory` alone. So results are the same to the last bit, however often a run was
    interrupted: a batch of which some are wanted runs as a whole, and what is not wanted of it is dropped.

    Args:
        model: any.
        names: as for `model.segment`, best what `model.check_names` returned.
        pictures: all of the run, in an order that is the same each time.
        wanted: those that have no results yet.
        batch_size: pictures that run together, if there is room.
        memory: bytes that the process may take. A picture that needs more goes through `huge.segment_file`, where the
            model can do that, and no more are read ahead or wait to be written than there is room for.
        view: how they are shown to the model.
        outputs: what is written of each.

    Yields:
        One outcome for each wanted picture, when its results are on disk.

    Raises:
        UserError: the model's own views of a picture need more than the memory.
    """
    if model.tiles is not None and model.view_bytes() > memory:
        raise UserError(
            f"inference.image_size {model.config.inference.image_size} takes about {model.view_bytes() / 1e9:,.0f} GB, "
            f"more than --memory allows ({memory / 1e9:,.1f} GB); use a smaller one"
        )
    room, held = huge.room_for_pictures(model, memory, batch_size), 0
    scores = FLOAT_BYTES * len(ClassList.of(names).rows) if "scores" in outputs.formats else 0
    with _pool() as readers, _pool() as writers:
        batches = _plan(
            pictures, wanted, batch_size, lambda picture: _look(model, picture, room, view, scores), room, readers
        )
        upcoming = next(batches, None)
        reading: deque[Batch] = deque()
        writing: deque[tuple[Future[Outcome], int]] = deque()
        while upcoming or reading or writing:
            if len(writing) <= max(batch_size, THREADS):
                while upcoming and len(reading) <= BATCHES_AHEAD and (not held or held + _size(upcoming) <= room):
                    reading.append(_begin(readers, upcoming, view))
                    held += _size(upcoming)
                    upcoming = next(batches, None)
                if reading:
                    batch = reading.popleft()
                    results = _results(model, names, batch, batch_size, memory, view, outputs)
                    for look, result in zip(batch.looks, results, strict=True):
                        if look.picture in wanted:
                            writing.append((writers.submit(_write, look, result, outputs), look.size))
                        else:
                            held -= look.size
                    continue
            written, size = writing.popleft()
            yield written.result()
            held -= size


def neighbours(pictures: Sequence[Picture], batch_size: int) -> Iterator[Sequence[Picture]]:
    """The pictures in parts: a batch is made of pictures of one part, so whoever has a part makes the same batches."""
    for start in range(0, len(pictures), BATCHES_LOOKED_AT * batch_size):
        yield pictures[start : start + BATCHES_LOOKED_AT * batch_size]


def several_neighbours(pictures: Sequence[Picture], batch_size: int, count: int) -> Iterator[list[Picture]]:
    """The same in longer parts, of so many pictures or a few more."""
    gathered: list[Picture] = []
    for near in neighbours(pictures, batch_size):
        gathered += near
        if len(gathered) >= count:
            yield gathered
            gathered = []
    if gathered:
        yield gathered


def _plan(
    pictures: Sequence[Picture],
    wanted: Collection[Picture],
    batch_size: int,
    look: Callable[[Picture], Look],
    room: int,
    readers: ThreadPoolExecutor,
) -> Iterator[list[Look]]:
    """The batches with a wanted picture, each of pictures of one shape that are not far from each other."""
    for near in neighbours(pictures, batch_size):
        if not any(picture in wanted for picture in near):
            continue
        alike: dict[Shape, list[list[Look]]] = {}
        for found in readers.map(look, near):
            group = alike.setdefault(found.shape, [[]])
            if len(group[-1]) == batch_size or (group[-1] and _size([*group[-1], found]) > room):
                group.append([])
            group[-1].append(found)
        for batch in (batch for group in alike.values() for batch in group):
            if any(found.picture in wanted for found in batch):
                yield batch


def _size(batch: Sequence[Look]) -> int:
    return sum(look.size for look in batch)


def _look(model: BaseSegmenter, picture: Picture, room: int, view: View, scores: int) -> Look:
    """By its header. Where that misleads, as a damaged one can, a batch has pictures of two sizes, which is no harm.

    `scores` are the bytes that those of a pixel take, if they are kept; then a picture that has the room is seen whole.
    """
    try:
        source = in_reach(picture.path)
        seen = look_at(picture.path, view, source)
        if seen.place_is_lost:
            mend = "install rasterio, as with the extra geo" if import_rasterio() is None else "convert it to RGB"
            note(f"{picture.path} says which place on Earth it shows, and its labels do not; {mend}, and they do")
        size = (huge.BYTES_PER_PIXEL + scores) * seen.height * seen.width
        if model.tiles is not None and not (scores and size <= room) and huge.needs_streaming(seen, room):
            return Look(picture, HUGE, room)
    except UserError as error:
        return Look(picture, UNREADABLE, 0, error=error)
    shape = model.batch_shape(seen.height, seen.width)
    return Look(picture, shape, size, source, seen.georeferenced)


def _begin(readers: ThreadPoolExecutor, looks: list[Look], view: View) -> Batch:
    huge_one = looks[0].shape == HUGE
    return Batch(looks, [] if huge_one else [readers.submit(_read, look, view) for look in looks])


def _read(look: Look, view: View) -> Pixels | UserError:
    if look.error is not None:  # of which reading it as something else would say nothing
        return look.error
    try:
        return pixels_of(look.source, str(look.picture.path), view)
    except UserError as error:
        return error


def _results(
    model: BaseSegmenter,
    names: Names | ClassList,
    batch: Batch,
    batch_size: int,
    memory: int,
    view: View,
    outputs: Outputs,
) -> Iterable[Segmentation | dict[str, Any] | UserError]:
    """What is to be written of each picture of a batch."""
    if batch.looks[0].shape == HUGE:
        return (_segment_huge(model, names, look.picture, memory, view, outputs) for look in batch.looks)
    return _segment(model, names, [image.result() for image in batch.images], batch_size, "scores" in outputs.formats)


def _segment(
    model: BaseSegmenter,
    names: Names | ClassList,
    images: Sequence[Pixels | UserError],
    batch_size: int,
    scores: bool,
) -> list[Segmentation | UserError]:
    """The result of each picture; errors stay what they are."""
    readable = [image.rgb for image in images if not isinstance(image, UserError)]
    results = iter(model.segment_arrays(readable, names, batch_size, scores))
    return [image if isinstance(image, UserError) else next(results).where(image.valid) for image in images]


def _segment_huge(
    model: BaseSegmenter, names: Names | ClassList, picture: Picture, memory: int, view: View, outputs: Outputs
) -> dict[str, Any] | UserError:
    folder, stem = picture.target.parent, picture.target.name
    try:
        return huge.segment_file(
            model,
            picture.path,
            names,
            folder,
            stem,
            memory,
            bands=view.bands,
            stretch=view.stretch,
            formats=outputs,
            file=picture.title,
        )
    except UserError as error:
        return error


def _write(look: Look, result: Segmentation | dict[str, Any] | UserError, outputs: Outputs) -> Outcome:
    picture = look.picture
    if isinstance(result, Segmentation):
        try:
            _save(look, result, outputs)
            result = result.summary()
        except UserError as error:
            result = error
    return Outcome(picture, None, str(result)) if isinstance(result, UserError) else Outcome(picture, result)


def _save(look: Look, result: Segmentation, outputs: Outputs) -> None:
    path, target = look.picture.path, look.picture.target
    huge.save_result(
        result, target.parent, target.name, look.picture.title, outputs, path if look.georeferenced else None
    )


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that, when something went wrong, finish what they are at and begin nothing more."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
