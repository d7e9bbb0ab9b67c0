"""What segmenting a picture returns: labels with their names, their scores and the picture itself."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from dinov3seg_jax import visualize
from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.files import expanded, write_whole
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

    def where(self, valid: Bool[np.ndarray, "h w"] | None) -> "Segmentation":
        """The same without labels where the picture has no data; None: it has data everywhere."""
        if valid is None:
            return self
        return dataclasses.replace(self, labels=np.where(valid, self.labels, visualize.UNLABELLED))

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
    ) -> tuple[Path, Path, Path]:
        """Write `<stem>_overlay.png`, `<stem>_labels.png` and `<stem>.json`; each appears whole or not at all.

        The labels are an indexed PNG in the colours of the overlay, or 16-bit grey for more than 256 names. In both, a
        pixel's value is the index into `names`. Pixels without data have the value 255, or 65535 where there are more
        than 255 names. The JSON is `summary`, with the name of the picture's file.

        Args:
            folder: created if it does not exist.
            stem: the beginning of the files' names; no path.
            file: the picture's name in the JSON.
            label_writer: writes the labels in another format, and returns their path; it is given that without suffix.

        Returns:
            The three paths, in that order.

        Raises:
            UserError: the folder cannot be written, or the stem is no name.
        """
        folder = expanded(folder)
        if not isinstance(stem, str) or not stem or Path(stem).name != stem:
            raise UserError(
                f"{one_line(repr(stem), 60)} is no beginning of a file's name; give a word, and the folder by itself"
            )
        overlay, labels, summary = (folder / f"{stem}{end}" for end in ("_overlay.png", "_labels.png", ".json"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(overlay, visualize.encode(Image.fromarray(self.overlay())))
            if label_writer is None:
                write_whole(labels, visualize.encode(self._label_image()))
            else:
                labels = label_writer(folder / f"{stem}_labels")
            text = json.dumps({"file": file, "labels": labels.name} | self.summary(), indent=2, ensure_ascii=False)
            write_whole(summary, f"{text}\n".encode(errors="replace"))
        except (OSError, ValueError) as error:  # a name may hold what no file's can
            raise UserError(f"{folder} cannot be written ({reason(error)}); choose another") from error
        return overlay, labels, summary

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
