"""The one function that the page and the API ask: a picture and names in, a result out, as `predict` gives it."""

import contextlib
import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from dinov3seg_jax.app.limits import Limits, as_known
from dinov3seg_jax.app.models import Models
from dinov3seg_jax.data.images import read_pixels
from dinov3seg_jax.data.paper import Pixels
from dinov3seg_jax.data.readers import open_scene
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import huge
from dinov3seg_jax.text.class_lists import ClassList
from dinov3seg_jax.text.class_lists.asked import UNKNOWN
from dinov3seg_jax.visualize import class_colors

if TYPE_CHECKING:
    from dinov3seg_jax.inference.base import BaseSegmenter

MOST_SCORE_BYTES = 10**9  # of the scores of all classes in all pixels, which are in memory together


@dataclass(frozen=True)
class Typed:
    """Names, and what stands beside them, as somebody typed it; see `ClassList.of`."""

    names: str
    background: str = ""
    synonyms: str = "mean"
    min_confidence: float = 0.0
    unknown: str = ""


@dataclass(frozen=True)
class Asker:
    """Answers questions about uploads, within limits."""

    models: Models
    limits: Limits

    def understand(self, typed: Typed, model_name: str = "") -> ClassList:
        """The classes in a list as it was typed.

        Args:
            typed: as on the command line.
            model_name: of a model that has to take them, if it is loaded.

        Raises:
            UserError: it holds none, too many, or can be read in two ways; or the model does not take them.
        """
        check = self.limits.check_text
        asked = ClassList.of(
            check(typed.names),
            background=check(typed.background) if str(typed.background or "").strip() else (),
            synonyms=typed.synonyms,  # type: ignore[arg-type]  # which is checked there
            min_confidence=typed.min_confidence,
            unknown=typed.unknown or UNKNOWN,
        )
        self.limits.check_count(sum(len(one.names) for one in (*asked.classes, *asked.background)))
        model = self.models.loaded(model_name)
        return asked if model is None else model.check_names(asked)

    def read(self, path: Path, name: str) -> Pixels:
        """The pixels of an upload.

        Raises:
            UserError: it is no picture, damaged or too large.
        """
        self.limits.check_upload(path, name)
        try:
            return read_pixels(path)
        except UserError as error:
            raise as_known(error, path, name) from error

    def ask(
        self, path: Path, name: str, lists: list[Typed], model_name: str
    ) -> Generator[str, None, list[tuple[ClassList, Segmentation]]]:
        """Segment a picture by one or several lists of names.

        Args:
            path: of the upload.
            name: as its owner knows it.
            lists: of names.
            model_name: one of `Models.names`.

        Yields:
            What is being done next, for whoever waits.

        Returns:
            For each list what was understood, and the result. A class of several lists has one colour in all of them.

        Raises:
            UserError: the picture, a list or the model cannot be used.
        """
        understood = [self.understand(typed) for typed in lists]
        self.limits.check_upload(path, name)
        if not self.models.is_ready(model_name):
            yield f"waiting for {model_name}, which is being loaded"
        model = self.models.open(model_name)
        accepted = [model.check_names(asked) for asked in understood]
        yield f"reading {name}"
        pixels = self.read(path, name)
        height, width = pixels.rgb.shape[:2]
        results: list[Segmentation] = []
        for asked in accepted:
            count = f"{len(asked.classes)} {'class' if len(asked.classes) == 1 else 'classes'}"
            yield f"segmenting {width:,} x {height:,} pixels, {count}"
            with self.models.device:
                result = _segment(model, pixels, asked)
            results.append(_colored_like(results[0], result, asked) if results else result)
        return list(zip(accepted, results, strict=True))

    def scores(self, rgb: UInt8[np.ndarray, "h w 3"], asked: ClassList, model_name: str) -> Float[np.ndarray, "t h w"]:
        """The score of every class in every pixel, of a picture that was segmented.

        Raises:
            UserError: they would fill the memory, or the model has none.
        """
        size = 4 * len(asked.rows) * rgb.shape[0] * rgb.shape[1]
        if size > MOST_SCORE_BYTES:
            raise UserError(
                f"the scores of {len(asked.rows)} names in {rgb.shape[1]:,} x {rgb.shape[0]:,} pixels take "
                f"{size / 1e9:,.1f} GB, more than {MOST_SCORE_BYTES / 1e9:,.0f}; name fewer or make it smaller"
            )
        model = self.models.open(model_name)
        with self.models.device:
            (result,) = model.segment_arrays([np.asarray(rgb)], asked, scores=True)
        assert result.scores is not None
        return result.scores


def has_place(path: Path) -> bool:
    """Whether a picture's file says which place on Earth it shows, and rasterio is there to read that."""
    scene = open_scene(path, str(path))
    if scene is None:
        return False
    with contextlib.closing(scene):
        return scene.georeferenced


def _segment(model: "BaseSegmenter", pixels: Pixels, asked: ClassList) -> Segmentation:
    """By the rule of `predict`: tile by tile where the whole picture would take more than half of the free memory."""
    height, width = pixels.rgb.shape[:2]
    room = huge.room_for_pictures(model, huge.auto_memory(), 1)
    if model.tiles is not None and height * width * huge.BYTES_PER_PIXEL > room:
        (result,) = model.segment_in_tiles([pixels.rgb], asked)
    else:
        (result,) = model.segment_arrays([pixels.rgb], asked)
    return result.where(pixels.valid)


def _colored_like(first: Segmentation, result: Segmentation, asked: ClassList) -> Segmentation:
    """The result in the colours that its classes have in another one; those of a list of its own win."""
    given = {name: color.tolist() for name, color in zip(first.names, first.colors, strict=True)}
    own = {one.shown: one.color for one in asked.classes if one.color is not None}
    return dataclasses.replace(result, colors=class_colors(result.names, given=given | own))
