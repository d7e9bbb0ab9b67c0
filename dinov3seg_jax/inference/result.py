"""What segmenting a picture returns: labels with their names, their scores and the picture itself."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from dinov3seg_jax import visualize
from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.files import expanded, write_whole
from dinov3seg_jax.formats import coco, tables
from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.detections import detections
from dinov3seg_jax.formats.geo import geojson
from dinov3seg_jax.formats.outlines import Region, all_outlines
from dinov3seg_jax.formats.outputs import DEFAULT, MinArea, Outputs, parse_min_area, parse_simplify
from dinov3seg_jax.formats.parts import Classes
from dinov3seg_jax.formats.table import asked
from dinov3seg_jax.formats.writing import write_formats
from dinov3seg_jax.screen import show
from dinov3seg_jax.visualize import class_colors

PALETTE_NAMES = 256  # what an indexed PNG can hold
NODATA_NAMES = 255  # the same, where one value stands for no data


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmented picture.

    Attributes:
        labels: for each pixel, the index of its class in `names`; `visualize.UNLABELLED`, -1, where there are no data.
        confidence: the score of that class, in [0, 1].
        names: the classes that were asked for.
        image: the picture, RGB, 0 to 255, at its own size.
        recipe: how it was segmented; kept with the summary if it is not empty.
        colors: of the classes, RGB; those of `class_colors` unless given.
        place: where on Earth the picture lies, as rasterio writes it ("crs", "transform"); empty if unknown.
        scores: of every class in every pixel, in [0, 1]; None unless they were asked for.
        drawing: what its overlay looks like.
    """

    labels: Int[np.ndarray, "h w"]
    confidence: Float[np.ndarray, "h w"]
    names: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    colors: UInt8[np.ndarray, "t 3"] = None  # type: ignore[assignment]  # until __post_init__
    place: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: Float[np.ndarray, "t h w"] | None = None
    drawing: visualize.Drawing = dataclasses.field(default_factory=visualize.Drawing)

    def __post_init__(self) -> None:
        """Fill the colours in."""
        if self.colors is None:
            object.__setattr__(self, "colors", class_colors(self.names))

    def where(self, valid: Bool[np.ndarray, "h w"] | None, place: Mapping[str, Any] | None = None) -> "Segmentation":
        """The same without labels where the picture has no data, and with its place on Earth.

        Args:
            valid: which pixels have data; None: all of them.
            place: as in the class's attributes; None or empty leaves it as it is.
        """
        changed: dict[str, Any] = {"place": dict(place)} if place else {}
        if valid is not None:
            changed["labels"] = np.where(valid, self.labels, visualize.UNLABELLED)
        return dataclasses.replace(self, **changed) if changed else self

    def overlay(
        self,
        opacity: float | None = None,
        contours: visualize.Contours | None = None,
        labels: bool | None = None,
        legend: bool | None = None,
    ) -> UInt8[np.ndarray, "h2 w2 3"]:
        """The picture tinted by class, RGB, with a legend of the classes that occur, the largest first.

        Args:
            opacity: of the tint, in [0, 1]; None, here and below: as `drawing` says, 0.55 unless something was asked.
            contours: "thin"; "off"; or "only", without a tint.
            labels: write the names into the large regions.
            legend: list the classes, with their shares of the pixels that have data.

        Raises:
            UserError: an option cannot be used.
        """
        asked: dict[str, Any] = {"opacity": opacity, "contours": contours, "labels": labels, "legend": legend}
        drawing = dataclasses.replace(self.drawing, **{key: value for key, value in asked.items() if value is not None})
        return visualize.draw(self.image, self.labels, self.names, self.colors, drawing)

    def compare(
        self, other: "Segmentation", titles: Sequence[str] = ("first", "second")
    ) -> UInt8[np.ndarray, "h2 w2 3"]:
        """This result, another one of the same picture, and where they differ, side by side; see `visualize.compare`.

        Raises:
            UserError: they are of pictures of two sizes.
        """
        return visualize.compare(self, other, titles)

    def areas(self) -> dict[str, float]:
        """The share of the pixels with data that each class covers, in (0, 1], the largest first, if it occurs."""
        counts = self._areas()
        order = np.argsort(-counts, kind="stable")
        return {self.names[index]: float(counts[index] / counts.sum()) for index in order if counts[index]}

    def summary(self) -> dict[str, Any]:
        """Size, pixels without data, names, and for each name its pixels, share and mean confidence (None if absent).

        Shares are of the pixels with data. The recipe is added where there is one.
        """
        labelled = self.labels >= 0
        sums = np.bincount(self.labels[labelled], weights=self.confidence[labelled], minlength=len(self.names))
        height, width = self.labels.shape
        return summarize((height, width), self.names, self._areas(), sums) | self.recipe

    def save(
        self,
        folder: str | Path,
        stem: str = "result",
        file: str = "",
        label_writer: Callable[[Path], Path] | None = None,
        formats: str | Sequence[str] | Outputs = DEFAULT,
        min_area: MinArea = 0,
        simplify: float = 0.0,
    ) -> tuple[Path, ...]:
        """Write files; each appears whole or not at all.

        By default `<stem>_overlay.png`, `<stem>_labels.png` and `<stem>.json`. The labels are an indexed PNG in the
        colours of the overlay, or 16-bit grey for more than 256 names. In both, a pixel's value is the index into
        `names`. Pixels without data have the value 255, or 65535 where there are more than 255 names. The JSON is
        `summary`, with the name of the picture's file.

        Args:
            folder: created if it does not exist.
            stem: the beginning of the files' names; no path.
            file: the picture's name in the files, or its path in a folder, with slashes.
            label_writer: writes the labels in another format, and returns their path; it is given that without suffix.
            formats: names of `formats.table.FORMATS`, or all that is asked of them as one value.
            min_area: pixels that a region has at least where a format has regions; see `formats.table.asked`.
            simplify: how far the borders of polygons may move, in pixels.

        Returns:
            The paths: overlay, labels and JSON first, as far as they are asked for, then the others.

        Raises:
            UserError: the folder cannot be written, or the stem is no name; a format cannot be written, or there is
                none of that name.
        """
        outputs = formats if isinstance(formats, Outputs) else asked(formats, min_area, simplify)
        folder = expanded(folder)
        if not isinstance(stem, str) or not stem or Path(stem).name != stem:
            raise UserError(
                f"{one_line(repr(stem), 60)} is no beginning of a file's name; give a word, and the folder by itself"
            )
        overlay, labels, summary = (folder / f"{stem}{end}" for end in ("_overlay.png", "_labels.png", ".json"))
        written, said = [], {"file": PurePosixPath(file).name}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if "overlay" in outputs.formats:
                drawn = dataclasses.replace(self, drawing=outputs.drawing or self.drawing).overlay()
                write_whole(overlay, visualize.encode(Image.fromarray(drawn)))
                written.append(overlay)
            if "labels" in outputs.formats:
                if label_writer is None:
                    write_whole(labels, visualize.encode(self._label_image()))
                else:
                    labels = label_writer(folder / f"{stem}_labels")
                written.append(labels)
                said["labels"] = labels.name
            others = write_formats(self.answer(file or stem), outputs, folder, stem)
            if "json" in outputs.formats:  # last: it says that the picture is done
                text = json.dumps(said | self.summary(), indent=2, ensure_ascii=False)
                write_whole(summary, f"{text}\n".encode(errors="replace"))
                written.append(summary)
        except (OSError, ValueError) as error:  # a name may hold what no file's can
            raise UserError(f"{folder} cannot be written ({reason(error)}); choose another") from error
        return *written, *others

    def answer(self, file: str = "") -> Answer:
        """What the formats are written from; `file` is what the picture is called in them."""
        return Answer(file, self.labels, self.confidence, self.names, self.colors, self.place, self.scores)

    def to_coco(
        self, file: str = "", kind: coco.Kind = "regions", min_area: MinArea = 0, simplify: float = 0.0
    ) -> dict[str, Any]:
        """COCO's JSON, as a dictionary.

        Args:
            file: the picture's name.
            kind: an annotation for each connected region, with its mask as run lengths ("regions"), or with its outline
                ("polygons"); or one for each class, with run lengths ("classes").
            min_area: pixels that a region has at least; see `formats.table.asked`.
            simplify: how far the borders of polygons may move, in pixels.

        Raises:
            UserError: a library is missing, or a value cannot be used.
        """
        outputs = Outputs((), parse_min_area(min_area), parse_simplify(simplify))
        part = list(coco.part(self.answer(file), outputs, kind))
        return json.loads(b"".join(coco.join([part], Classes(self.names, self.colors))))

    def to_geojson(self, file: str = "", min_area: MinArea = 0, simplify: float = 0.0) -> dict[str, Any]:
        """Polygons in longitude and latitude, or in pixels without a place, as a dictionary; arguments as `to_coco`'s.

        Raises:
            UserError: a library is missing, or a value cannot be used.
        """
        outputs = Outputs((), parse_min_area(min_area), parse_simplify(simplify))
        return json.loads(b"".join(geojson(self.answer(file), outputs)))

    def polygons(self, min_area: MinArea = 0, simplify: float = 0.0) -> list[Region]:
        """The connected regions with their outlines, from top to bottom; arguments as `to_coco`'s.

        Raises:
            UserError: a library is missing, or a value cannot be used.
        """
        outputs = Outputs((), parse_min_area(min_area), parse_simplify(simplify))
        found = all_outlines(self.answer(), outputs, "a polygon", "formats")
        return [
            Region(self.names[index], int(index), shape, int(area), float(mean))
            for shape, index, area, mean in zip(*found[:3], found.confidences(), strict=True)
        ]

    def to_detections(self, min_area: MinArea = 0) -> Any:
        """The connected regions as supervision's `Detections`; `min_area` as `to_coco`'s.

        Raises:
            UserError: supervision is missing, a value cannot be used, or the masks would fill the memory.
        """
        return detections(self.answer(), Outputs((), parse_min_area(min_area)))

    def to_dataframe(self, file: str = "") -> Any:
        """The areas as pandas' DataFrame, a row for each class; `formats.tables.COLUMNS` has the columns.

        Raises:
            UserError: pandas is missing.
        """
        return tables.frame(self.answer(file))

    def show(self) -> None:
        """Show the overlay: in a notebook below the cell, else in the viewer of this computer.

        Where there is neither, as on a server, it is saved, and a line says where.
        """
        show(Image.fromarray(self.overlay()))

    def _repr_png_(self) -> bytes:
        """What a notebook shows of a result."""
        return visualize.encode(Image.fromarray(self.overlay()))

    def _areas(self) -> Int[np.ndarray, " t"]:
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.names))

    def _label_image(self) -> Image.Image:
        gaps = bool((self.labels < 0).any())  # which become the largest value
        if len(self.names) > (NODATA_NAMES if gaps else PALETTE_NAMES):
            return Image.fromarray(self.labels.astype(np.uint16))
        image = Image.fromarray(self.labels.astype(np.uint8))
        colors = self.colors
        if gaps:  # a shorter palette would have Pillow write fewer bits
            colors = np.concatenate([colors, np.zeros((PALETTE_NAMES - len(colors), 3), np.uint8)])
        image.putpalette(colors.ravel().tolist())
        return image


def summarize(
    size: tuple[int, int], names: Sequence[str], counts: Int[np.ndarray, " t"], sums: Float[np.ndarray, " t"]
) -> dict[str, Any]:
    """What is told of a picture's labels.

    Args:
        size: height and width.
        names: of the classes.
        counts: pixels of each class; all others have no data.
        sums: of their confidence.
    """
    height, width = size
    valid = int(counts.sum())
    return {
        "height": height,
        "width": width,
        "nodata_pixels": height * width - valid,
        "names": list(names),
        "classes": [
            {
                "name": name,
                "pixels": int(count),
                "fraction": float(count / max(valid, 1)),
                "mean_confidence": float(total / count) if count else None,
            }
            for name, count, total in zip(names, counts, sums, strict=True)
        ],
    }
