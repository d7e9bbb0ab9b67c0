"""What every segmenter promises, and what it may be able to do besides."""

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
from dinov3seg_jax.data.images import as_array
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.tile_scorer import TileScorer
from dinov3seg_jax.models.parameters import Parameters, parameter_bytes
from dinov3seg_jax.text.prompts import parse_names

Picture = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]

NO_CHECKSUMS: Mapping[str, str] = MappingProxyType({})  # of arrays: none is known
FLOAT_BYTES = 4
MAPS_PER_VIEW = 16  # of all channels that exist at once, roughly


class BaseSegmenter(abc.ABC):
    """A model that is ready for pictures and class names.

    Attributes:
        section: of `Config`, that says how pictures are segmented.
        config: of the model, and how it is used.
        parameters: of the model, on the device.
        tiles: segments pictures of any size tile by tile; None where the model cannot.
        shares_devices: whether several devices can share a batch of pictures out.
    """

    section: ClassVar[Literal["inference", "zero_shot"]] = "inference"
    shares_devices: ClassVar[bool] = False
    tiles: TileScorer | None = None
    config: Config
    parameters: Parameters

    @property
    def recipe(self) -> dict[str, Any]:
        """How pictures are segmented: the options of `section`, by its name, as plain values."""
        return {self.section: dataclasses.asdict(getattr(self.config, self.section))}

    @abc.abstractmethod
    def describe(self) -> str:
        """The recipe in words, which goes with scores."""

    @abc.abstractmethod
    def accept(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The names, if the model takes them.

        Raises:
            UserError: it does not.
        """

    @abc.abstractmethod
    def segment_arrays(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]], names: Sequence[str] | str, batch_size: int = 1
    ) -> list[Segmentation]:
        """Segment pictures of any sizes.

        Args:
            images: RGB.
            names: as for `segment`.
            batch_size: pictures that run together, where the model runs several.

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
            image: a file (see `data.images.read_image`), a PIL image, which is turned upright and converted to RGB as
                PIL does, or an array, uint8 [H, W, 3], RGB.
            names: class names, as a list, or as text (see `text.prompts.parse_names`).

        Returns:
            Labels at the picture's own size.

        Raises:
            UserError: the picture or the names cannot be used.
        """
        names = self.check_names(names)
        return self.segment_arrays([as_array(image)], names)[0]

    def batch_shape(self, height: int, width: int) -> tuple[int, int]:
        """What pictures that run together have in common; by default all may, as each runs by itself."""
        return 0, 0

    def held_bytes(self) -> int:
        """What the model takes as long as it is loaded."""
        return parameter_bytes(self.parameters)

    @abc.abstractmethod
    def view_patches(self) -> int:
        """Patches of all views of one picture that are in memory together, roughly."""

    def view_bytes(self) -> int:
        """What running one picture takes beyond its scores, roughly: a few maps of all patches of all its views."""
        return FLOAT_BYTES * MAPS_PER_VIEW * self.view_patches() * self.config.model.vision.dim
