"""What every segmenter promises, and what some can do besides: tiles, and several devices."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinov3seg_jax.config import Config
from dinov3seg_jax.data.images import as_pixels
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.tile_scorer import TileScorer
from dinov3seg_jax.models.parameters import Parameters, parameter_bytes
from dinov3seg_jax.text.prompts import parse_names

Picture = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]

NO_CHECKSUMS: Mapping[str, str] = MappingProxyType({})  # of arrays: none is known
FLOAT_BYTES = 4
MAPS_PER_VIEW = 16  # of all channels that exist at once, roughly


class BaseSegmenter(abc.ABC):
    """A model that is ready for pictures and class names; `dinov3seg_jax.load` returns one.

    Attributes:
        section: the section of `Config` that says how pictures are segmented.
        config: of the model, and how it is used.
        parameters: of the model, on the device, by name.
        tiles: segments pictures of any size tile by tile; None if the model cannot.
        shares_devices: whether several devices can share a batch of pictures.
    """

    section: ClassVar[Literal["inference", "zero_shot"]] = "inference"
    shares_devices: ClassVar[bool] = False
    tiles: TileScorer | None = None
    config: Config
    parameters: Parameters

    @property
    def recipe(self) -> dict[str, Any]:
        """How pictures are segmented: the options of `section`, under its name, as plain values."""
        return {self.section: dataclasses.asdict(getattr(self.config, self.section))}

    @abc.abstractmethod
    def describe(self) -> str:
        """The recipe in words; it is written beside scores."""

    @abc.abstractmethod
    def accept(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Check class names; returns them as the model uses them.

        Raises:
            UserError: the model does not take them.
        """

    @abc.abstractmethod
    def segment_arrays(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]], names: Sequence[str] | str, batch_size: int = 1
    ) -> list[Segmentation]:
        """Segment pictures of any sizes.

        Args:
            images: RGB, 0 to 255.
            names: as for `segment`.
            batch_size: pictures that run together, if the model can run several.

        Returns:
            One result for each picture, in their order.

        Raises:
            UserError: the names cannot be used.
        """

    def check_names(self, names: Sequence[str] | str) -> tuple[str, ...]:
        """The class names, parsed if they are text (see `text.prompts.parse_names`).

        Raises:
            UserError: the model does not take them.
        """
        return self.accept(parse_names(names) if isinstance(names, str) else tuple(names))

    def segment(self, image: Picture, names: Sequence[str] | str) -> Segmentation:
        """Segment one picture.

        Args:
            image: a file; a PIL image; an array, best of RGB bytes, uint8 [H, W, 3]; or a file's content (see
                `data.images.as_pixels`).
            names: class names: a list, or text like "dog, grass" or "@names.txt" (see `text.prompts.parse_names`).

        Returns:
            Labels and confidences at the picture's own size.

        Raises:
            UserError: the picture or the names cannot be used.
        """
        names = self.check_names(names)
        rgb, valid = as_pixels(image)
        return self.segment_arrays([rgb], names)[0].where(valid)

    def batch_shape(self, height: int, width: int) -> tuple[int, int]:
        """Pictures with the same answer can run together: their size once resized. Default: any, as each runs alone."""
        return 0, 0

    def held_bytes(self) -> int:
        """Bytes that the model takes as long as it is loaded."""
        return parameter_bytes(self.parameters)

    @abc.abstractmethod
    def view_patches(self) -> int:
        """Patches of all views of one picture that are in memory together, roughly."""

    def view_bytes(self) -> int:
        """Bytes that one picture takes beside its scores, roughly: a few maps of all patches of all its views."""
        return FLOAT_BYTES * MAPS_PER_VIEW * self.view_patches() * self.config.model.vision.dim
