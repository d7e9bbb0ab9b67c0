"""The one function that the page and the API ask: a picture and names in, a result out, as `predict` gives it."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3seg_jax.app.limits import Limits, as_known
from dinov3seg_jax.app.models import Models
from dinov3seg_jax.data.images import read_pixels
from dinov3seg_jax.data.paper import Pixels
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import huge
from dinov3seg_jax.text.class_lists import ClassList

if TYPE_CHECKING:
    from dinov3seg_jax.inference.base import BaseSegmenter


@dataclass(frozen=True)
class Asker:
    """Answers questions about uploads, within limits."""

    models: Models
    limits: Limits

    def understand(self, text: str, model_name: str = "") -> ClassList:
        """The classes in a list as it was typed.

        Args:
            text: as on the command line.
            model_name: of a model that has to take them, if it is loaded.

        Raises:
            UserError: it holds none, too many, or can be read in two ways; or the model does not take them.
        """
        asked = ClassList.of(self.limits.check_text(text))
        self.limits.check_count(tuple(name for one in asked.classes for name in one.names))
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

    def ask(self, path: Path, name: str, lists: list[str], model_name: str) -> Generator[str, None, list[Segmentation]]:
        """Segment a picture by one or several lists of names.

        Args:
            path: of the upload.
            name: as its owner knows it.
            lists: of names, each as it was typed.
            model_name: one of `Models.names`.

        Yields:
            What is being done next, for whoever waits.

        Returns:
            One result for each list.

        Raises:
            UserError: the picture, a list or the model cannot be used.
        """
        typed = [self.understand(text) for text in lists]
        self.limits.check_upload(path, name)
        if not self.models.is_ready(model_name):
            yield f"waiting for {model_name}, which is being loaded"
        model = self.models.open(model_name)
        accepted = [model.check_names(names) for names in typed]
        yield f"reading {name}"
        pixels = self.read(path, name)
        height, width = pixels.rgb.shape[:2]
        results = []
        for asked in accepted:
            count = f"{len(asked.classes)} {'class' if len(asked.classes) == 1 else 'classes'}"
            yield f"segmenting {width:,} x {height:,} pixels, {count}"
            with self.models.device:
                results.append(_segment(model, pixels, asked))
        return results


def _segment(model: "BaseSegmenter", pixels: Pixels, asked: ClassList) -> Segmentation:
    """By the rule of `predict`: tile by tile where the whole picture would take more than half of the free memory."""
    height, width = pixels.rgb.shape[:2]
    room = huge.room_for_pictures(model, huge.auto_memory(), 1)
    if model.tiles is not None and height * width * huge.BYTES_PER_PIXEL > room:
        (result,) = model.segment_in_tiles([pixels.rgb], asked)
    else:
        (result,) = model.segment_arrays([pixels.rgb], asked)
    return result.where(pixels.valid)
