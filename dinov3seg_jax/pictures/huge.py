"""Pictures too large for memory: read, segmented and written piece by piece."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from jaxtyping import Integer, Num, UInt8
from PIL import Image
from tqdm import tqdm

from dinov3seg_jax import visualize
from dinov3seg_jax.data.scenes import Scene, View, check_bands
from dinov3seg_jax.data.stretch import Stretch, parse_stretch
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import appearing, expanded, write_whole
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.outputs import DEFAULT, MinArea, Outputs
from dinov3seg_jax.formats.table import FORMATS
from dinov3seg_jax.formats.table import asked as asked_formats
from dinov3seg_jax.formats.writing import write_formats
from dinov3seg_jax.inference.base import BaseSegmenter
from dinov3seg_jax.inference.classes.answers import settle
from dinov3seg_jax.inference.result import Segmentation, summarize
from dinov3seg_jax.inference.views.blend import Piece, Shapes, count_tiles, label_tiles
from dinov3seg_jax.inference.views.tiles import Axis, Tiling, read_scaled, tile_stride
from dinov3seg_jax.pictures.rasters import (
    BLOCK,
    GeoLabels,
    LabelFile,
    Look,
    PngLabels,
    Raster,
    open_raster,
)
from dinov3seg_jax.places import is_remote
from dinov3seg_jax.scratch import scratch
from dinov3seg_jax.text.class_lists import ClassList, Names

BYTES_PER_PIXEL = 48  # what a picture takes that is handled as a whole: itself, labels, scores, overlay
RUNTIME_BYTES = 600 * 2**20  # Python, JAX and compiled programs
MOST_AT_ONCE = 8  # tiles, if memory allows
OVERVIEW_SIDE = 2048
OVERVIEW_ROWS = 64  # that are read together
LEAST_ROOM = 64 * 2**20  # for pictures as a whole: in tiles, smaller ones take no less
CONTROL_GROUPS = (  # a container's limit and use, in Linux' new and old places
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


class Plan(NamedTuple):
    """How a picture is worked through in the memory there is."""

    batch_size: int  # tiles that run together
    widest: int  # cells of a band


class Overview:
    """A picture and its labels at a reduced size, for the overlay."""

    def __init__(self, height: int, width: int):
        """For a picture of that size."""
        scale = min(OVERVIEW_SIDE / max(height, width), 1)
        self.tiling = Tiling(*(_reduced(length, scale) for length in (height, width)))
        # The pixels in the middle of those of the overview.
        self._rows, self._columns = (
            (np.arange(axis.scaled) * 2 + 1) * axis.length // (2 * axis.scaled) for axis in self.tiling
        )
        self.labels = np.zeros((self.tiling.rows.scaled, self.tiling.columns.scaled), np.int32)

    def take(self, piece: Piece) -> None:
        """The labels that finished pixels have in the overview."""
        rows, columns = (
            slice(*np.searchsorted(places, (start, start + length)))
            for places, start, length in zip(
                (self._rows, self._columns), (piece.top, piece.left), piece.labels.shape, strict=True
            )
        )
        own = np.ix_(self._rows[rows] - piece.top, self._columns[columns] - piece.left)
        self.labels[rows, columns] = piece.labels[own]

    def sample(self, row: Callable[[int], Integer[np.ndarray, " width"]]) -> Integer[np.ndarray, "h w"]:
        """The labels that all pixels have in the overview; `row` returns one row of those of the picture."""
        return np.stack([row(place)[self._columns] for place in self._rows.tolist()])

    def picture(self, source: Raster) -> UInt8[np.ndarray, "h w 3"]:
        """The picture itself, a few rows at a time."""
        height, width = self.labels.shape
        tops = range(0, height, OVERVIEW_ROWS)
        parts = [read_scaled(source, self.tiling, top, min(top + OVERVIEW_ROWS, height), 0, width) for top in tops]
        return np.concatenate(parts)


class Totals:
    """Pixels and confidence of each class, where there are data."""

    def __init__(self, classes: int):
        """Begin with none."""
        self.counts, self.sums = np.zeros(classes, np.int64), np.zeros(classes)

    def take(self, piece: Piece) -> None:
        """Add finished pixels."""
        labelled = piece.labels >= 0
        labels = piece.labels[labelled]
        self.counts += np.bincount(labels, minlength=len(self.counts))
        self.sums += np.bincount(labels, weights=piece.confidence[labelled], minlength=len(self.counts))


class Spool:
    """A map on its way: pieces come in any order and leave from top to bottom; it lies on disk, without a name.

    So nothing of it is left behind, however a run ends.
    """

    def __init__(self, folder: Path, height: int, width: int, kind: np.dtype):
        """Begin it in a folder with room for all values."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, `close` closes it
        self._shape, self._kind = (height, width), kind

    def put(self, top: int, left: int, values: Num[np.ndarray, "h w"]) -> None:
        """Put finished pixels where they belong."""
        for row, own in enumerate(values.astype(self._kind), top):
            self._file.seek((row * self._shape[1] + left) * self._kind.itemsize)
            self._file.write(own)

    def rows(self) -> Iterator[Num[np.ndarray, "n width"]]:
        """All rows, a few at a time."""
        self._file.seek(0)
        height, width = self._shape
        for top in range(0, height, BLOCK):
            count = min(BLOCK, height - top)
            content = self._file.read(count * width * self._kind.itemsize)
            yield np.frombuffer(content, self._kind).reshape(count, width)

    def array(self) -> Num[np.ndarray, "height width"]:
        """The whole map, of which memory holds what is read."""
        self._file.flush()
        return np.memmap(self._file, self._kind, "r", shape=self._shape)

    def close(self) -> None:
        """Forget it."""
        self._file.close()


def auto_memory() -> int:
    """What this process takes and half of what is free, in bytes: `--memory auto`, once the model is loaded."""
    free = psutil.virtual_memory().available
    for folder, limit, used in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # the limit is "max" where there is none
            room = int((folder / limit).read_text()) - int((folder / used).read_text()) + _file_cache(folder)
            free = min(free, max(room, 0))
    return psutil.Process().memory_info().rss + free // 2


def _file_cache(control_group: Path) -> int:
    """Bytes that count as used by a container and that the system takes back when it needs them."""
    lines = (line.split() for line in (control_group / "memory.stat").read_text().splitlines())
    return next((int(size) for name, size in lines if name == "inactive_file"), 0)


def room_for_pictures(model: BaseSegmenter, memory_bytes: int, batch_size: int) -> int:
    """Bytes that pictures may take that go through the model as a whole, so many at a time.

    Args:
        model: that runs.
        memory_bytes: that the process may take.
        batch_size: pictures that run together.
    """
    taken = RUNTIME_BYTES + model.held_bytes() + batch_size * model.view_bytes()
    return max(memory_bytes - taken, LEAST_ROOM)


def needs_streaming(look: Look, room: int) -> bool:
    """Whether a picture is to go through `segment_file`: too large as a whole, or a georeferenced raster.

    Args:
        look: what `rasters.look_at` says of it; a georeferenced raster is recognised where rasterio is installed.
        room: bytes; see `room_for_pictures`.
    """
    return look.height * look.width * BYTES_PER_PIXEL > room or look.georeferenced


def segment_file(
    model: BaseSegmenter,
    source: str | Path,
    names: Names | ClassList,
    out_folder: str | Path,
    stem: str,
    memory_bytes: int,
    batch_size: int = 0,
    bands: Sequence[int] = (),
    stretch: str | Stretch | None = None,
    formats: str | Sequence[str] | Outputs = DEFAULT,
    min_area: MinArea = 0,
    simplify: float = 0.0,
    file: str = "",
    drawing: visualize.Drawing | None = None,
) -> dict[str, Any]:
    """Segment one picture of any size, tile by tile (see `inference.views.tiles` and docs/huge_images.md).

    Writes three files, or those of other formats; each appears whole or not at all:

    - `<stem>_labels.png`, at the picture's own size; for a raster read with rasterio `<stem>_labels.tif`, with its
      georeference. A pixel's value is the index of its name; without data it is 255, or 65535 for more than 255 names.
    - `<stem>_overlay.png`, of at most `OVERVIEW_SIDE` pixels a side.
    - `<stem>.json`, last: what this function returns.

    Args:
        model: with `tiles`, as of a trained dinov3.seg.
        source: the picture's file.
        names: in any form, or as `model.check_names` returns them.
        out_folder: created if it does not exist.
        stem: the beginning of the files' names.
        memory_bytes: that the whole process may take, the model included.
        batch_size: tiles that run together; 0: as many as the memory allows, at most `MOST_AT_ONCE`.
        bands: that are red, green and blue, or grey, from 1; empty: as the file says.
        stretch: what is black and white: percentiles as in "2,98", "minmax", or values as in "0:3000"; None: as
            `data.images.read_image` says.
        formats: as for `Segmentation.save`, like the next two.
        min_area: pixels that a region has at least.
        simplify: how far the borders of polygons may move, in pixels.
        file: what the picture is called in files about several; its name unless given.
        drawing: what the overlay looks like; as usual unless given.

    Returns:
        `Segmentation.summary`, and "file", the picture's name; "labels", the label file's name; "tiles", their side and
        stride in pixels; "tile_scale"; and "asked", where that is more than names.

    Raises:
        UserError: the model cannot segment tile by tile, the picture cannot be read, the folder cannot be written, or
            the memory is too small, for a format too; or there are no such bands, or no such format.
    """
    if model.tiles is None:
        raise UserError("this model sees whole pictures only; a picture that is too large needs a trained dinov3.seg.")
    tiles, source, out_folder = model.tiles, expanded(source), expanded(out_folder)
    outputs = formats if isinstance(formats, Outputs) else asked_formats(formats, min_area, simplify)
    outputs = outputs if drawing is None else outputs._replace(drawing=drawing)
    view = View(check_bands(bands), parse_stretch(stretch) if isinstance(stretch, str) else stretch)
    asked = ClassList.of(names)
    colors = asked.colors
    with contextlib.closing(open_raster(source, view)) as picture:
        shapes = tiles.shapes(len(asked.rows))
        plan = plan_memory(model, shapes, memory_bytes - picture.held_bytes, batch_size, source)
        _check_formats(outputs, picture, memory_bytes, source)
        try:
            out_folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as spools:
                size = (scratch() if is_remote(out_folder) else out_folder, picture.height, picture.width)
                labels = spools.enter_context(contextlib.closing(Spool(*size, label_kind(len(colors)))))
                confidence = None
                if any(not FORMATS[name].labels_only for name in outputs.formats):
                    confidence = spools.enter_context(contextlib.closing(Spool(*size, np.dtype(np.float32))))
                totals, overview = _run(model, picture, asked, shapes, plan, labels, confidence, source.name)
                said = {"file": source.name}
                if "labels" in outputs.formats:
                    path = write_labels(picture, labels.rows(), out_folder / f"{stem}_labels", colors)
                    said["labels"] = path.name
                answer = Answer(
                    file or source.name,
                    labels.array(),
                    np.zeros((0, 0)) if confidence is None else confidence.array(),
                    asked.names,
                    colors,
                    picture.place,
                )
                write_formats(answer, outputs, out_folder, stem)
            if "overlay" in outputs.formats:
                drawn = _overlay(picture, overview, totals, asked, outputs.drawing or visualize.Drawing())
                write_whole(out_folder / f"{stem}_overlay.png", drawn)
            options, patch_size = model.config.inference, model.config.model.vision.patch_size
            summary = (
                said
                | summarize((picture.height, picture.width), asked.names, totals.counts, totals.sums)
                | {"tiles": {"side": options.image_size, "stride": tile_stride(options, patch_size)}}
                | {"tile_scale": options.tile_scale}
                | asked.remark()
            )
            if "json" in outputs.formats:
                text = json.dumps(summary, indent=2, ensure_ascii=False)
                write_whole(out_folder / f"{stem}.json", f"{text}\n".encode(errors="replace"))
        except OSError as error:
            raise UserError(f"{out_folder} cannot be written ({error.strerror or error}); choose another") from error
    return summary


def _check_formats(outputs: Outputs, picture: Raster, memory_bytes: int, source: Path) -> None:
    """Refuse formats that hold a whole picture where it does not fit, and scores, which tiles do not leave."""
    if "scores" in outputs.formats:
        raise UserError(f"{source} is segmented tile by tile, which keeps no scores; raise --memory, or leave them out")
    needed = picture.height * picture.width * BYTES_PER_PIXEL
    whole = [name for name in outputs.formats if not FORMATS[name].streams]
    if whole and needed > memory_bytes:
        raise UserError(
            f"the format {whole[0]} holds all of {source} in memory, about {needed / 1e9:,.1f} GB, more than the "
            "memory allows; raise --memory, or use gpkg or geojson"
        )


def plan_memory(model: BaseSegmenter, shapes: Shapes, memory_bytes: int, batch_size: int, source: Path) -> Plan:
    """How many tiles run together, and how wide a band may be.

    Args:
        model: that runs.
        shapes: of the tiles.
        memory_bytes: that the process may take, without the picture.
        batch_size: tiles that run together; 0: as many as suit the memory.
        source: what an error calls the picture.

    Raises:
        UserError: not even one tile and a narrow band fit.
    """
    tile = 4 * shapes.classes * shapes.cells**2  # its scores
    column = 4 * shapes.classes * (shapes.cells + 1)  # of a band
    each = model.view_bytes() + 2 * tile
    narrowest = -(-shapes.cells // 4)
    left = memory_bytes - RUNTIME_BYTES - model.held_bytes() - tile
    missing = max(batch_size, 1) * each + narrowest * column - left
    if missing > 0:
        raise UserError(
            f"{source} with {shapes.classes} names needs {-(-missing // 2**20):,} MiB more than the memory allows; "
            "raise --memory, or name fewer classes"
        )
    batch_size = batch_size or min(max((left // 2) // each, 1), MOST_AT_ONCE)
    return Plan(batch_size, (left - batch_size * each) // column)


def _run(
    model: BaseSegmenter,
    picture: Raster,
    asked: ClassList,
    shapes: Shapes,
    plan: Plan,
    labels: Spool,
    confidence: Spool | None,
    title: str,
) -> tuple[Totals, Overview]:
    tiles = model.tiles
    assert tiles is not None
    tiling = tiles.plan(picture.height, picture.width)
    totals, overview = Totals(len(asked.names)), Overview(picture.height, picture.width)
    score = partial(tiles.score, names=asked.rows)
    with tqdm(total=count_tiles(tiling, shapes, plan.widest), desc=title, unit="tile", disable=None) as bar:
        for piece in label_tiles([(picture, tiling)], score, shapes, plan.batch_size, plan.widest, bar.update):
            settled = settle(asked, piece.labels, piece.confidence, model.calibration)
            piece = piece._replace(labels=settled[0], confidence=settled[1])
            if not picture.whole:
                height, width = piece.labels.shape
                valid = picture.valid(piece.top, piece.top + height, piece.left, piece.left + width)
                piece = piece._replace(labels=np.where(valid, piece.labels, visualize.UNLABELLED))
            labels.put(piece.top, piece.left, piece.labels)
            if confidence is not None:
                confidence.put(piece.top, piece.left, piece.confidence)
            overview.take(piece)
            totals.take(piece)
    return totals, overview


def label_kind(classes: int) -> np.dtype:
    """The smallest that holds so many labels, and -1."""
    return np.min_scalar_type(-classes)


def save_result(
    result: Segmentation, folder: Path, stem: str, file: str, outputs: Outputs, placed: Path | None
) -> None:
    """Write a picture's files; of one that lies on Earth with its place, and its labels as a GeoTIFF.

    Args:
        result: of the picture.
        folder, stem, file, outputs: see `Segmentation.save`.
        placed: the picture's file, if it says where on Earth it lies.

    Raises:
        UserError: see `Segmentation.save`.
    """
    if placed is None:
        result.save(folder, stem, file, formats=outputs)
        return
    with contextlib.closing(open_raster(placed)) as raster:
        dataclasses.replace(result, place=raster.place).save(
            folder,
            stem,
            file,
            label_writer=lambda place: write_labels(raster, [result.labels], place, result.colors),
            formats=outputs,
        )


def write_labels(
    picture: Raster, parts: Iterable[Integer[np.ndarray, "n width"]], place: Path, colors: UInt8[np.ndarray, "t 3"]
) -> Path:
    """The label map, as a GeoTIFF if rasterio reads the picture; it appears whole or not at all.

    Args:
        picture: that is labelled.
        parts: its labels from top to bottom, a few rows each.
        place: the file's path without the suffix.
        colors: of the classes.

    Returns:
        The file's path.

    Raises:
        OSError: it cannot be written.
    """
    path = place.with_name(place.name + (".tif" if isinstance(picture, Scene) else ".png"))
    with appearing(path) as temporary:
        file: LabelFile
        if isinstance(picture, Scene):
            file = GeoLabels(temporary, picture, colors)
        else:
            file = PngLabels(temporary, picture.height, picture.width, colors)
        with contextlib.closing(file):
            for rows in parts:
                file.write(rows)
    return path


def _overlay(
    picture: Raster, overview: Overview, totals: Totals, asked: ClassList, drawing: visualize.Drawing
) -> bytes:
    image, nodata = overview.picture(picture), picture.height * picture.width - int(totals.counts.sum())
    drawn = visualize.draw(image, overview.labels, asked.names, asked.colors, drawing, totals.counts, nodata)
    return visualize.encode(Image.fromarray(drawn))


def _reduced(length: int, scale: float) -> Axis:
    scaled = max(round(length * scale), 1)
    return Axis(length, scaled, scaled, np.zeros(1, int))
