"""What every segmenter promises, and what some can do besides: tiles, and several devices."""

import abc
import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar, Literal, Self, Unpack

import numpy as np
from jaxtyping import UInt8
from numpy.typing import ArrayLike
from PIL import Image

from dinov3seg_jax.config import Config
from dinov3seg_jax.data.clips import open_clip
from dinov3seg_jax.data.images import as_pixels
from dinov3seg_jax.errors import UserError, note, one_line
from dinov3seg_jax.inference.calibration import Calibration, Kind
from dinov3seg_jax.inference.classes.answers import settle, settle_scores
from dinov3seg_jax.inference.clips import SegmentedFrame, Smoothing, check_clip_options, segment_frames
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.tile_scorer import TileScorer
from dinov3seg_jax.inference.views.labels import Found
from dinov3seg_jax.models.parameters import Parameters, parameter_bytes
from dinov3seg_jax.text.class_lists import ClassList, NamedClass, Names, Options

Picture = str | Path | bytes | BinaryIO | Image.Image | ArrayLike  # see `data.images.as_pixels`

NO_CHECKSUMS: Mapping[str, str] = MappingProxyType({})  # of arrays: none is known
FLOAT_BYTES = 4
MAPS_PER_VIEW = 16  # of all channels that exist at once, roughly


class BaseSegmenter(abc.ABC):
    """A model that is ready for pictures and class names; `dinov3seg_jax.load` returns one.

    Attributes:
        section: the section of `Config` that says how pictures are segmented.
        config: of the model, and how it is used.
        parameters: of the model, on the device, by name.
        confidence_kind: what a confidence is: of each class by itself, or a share of one.
        calibration: makes it a probability of being right; None: it is as the model scores.
        tiles: segments pictures of any size tile by tile; None if the model cannot.
        shares_devices: whether several devices can share a batch of pictures.
    """

    section: ClassVar[Literal["inference", "zero_shot"]] = "inference"
    shares_devices: ClassVar[bool] = False
    tiles: TileScorer | None = None
    confidence_kind: Kind = "sigmoid"
    calibration: Calibration | None = None
    config: Config
    parameters: Parameters

    def with_parameters(self, parameters: Parameters) -> Self:
        """The same segmenter with other weights of its model; what was compiled is shared, and arrays are not copied.

        Args:
            parameters: all of them, on this segmenter's devices.
        """
        other = copy.copy(self)
        _, other.parameters = at_precision(self.config, parameters)
        return other

    @property
    def recipe(self) -> dict[str, Any]:
        """How pictures are segmented: the options of `section`, under its name, as plain values."""
        return {self.section: dataclasses.asdict(getattr(self.config, self.section))}

    @abc.abstractmethod
    def describe(self) -> str:
        """The recipe in words; it is written beside scores."""

    @abc.abstractmethod
    def accept(self, asked: ClassList) -> ClassList:
        """Check classes; returns them.

        Raises:
            UserError: the model does not take them.
        """

    @abc.abstractmethod
    def label(
        self,
        images: list[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[NamedClass],
        batch_size: int,
        scores: bool = False,
    ) -> list[Found]:
        """The best class in each pixel of pictures of any sizes.

        Args:
            images: RGB, 0 to 255.
            classes: accepted ones; several names of one are its mean.
            batch_size: pictures that run together, if the model can run several.
            scores: find those of all classes, too.

        Returns:
            One for each picture, in their order.
        """

    def segment_arrays(
        self,
        images: Iterable[UInt8[np.ndarray, "h w 3"]],
        names: Names | ClassList,
        batch_size: int = 1,
        scores: bool = False,
    ) -> list[Segmentation]:
        """Segment pictures of any sizes that are in memory as RGB bytes.

        Args:
            images: RGB, 0 to 255; also one array, uint8 [N, H, W, 3].
            names: as for `segment`.
            batch_size: pictures that run together, if the model can run several.
            scores: as for `segment`.

        Returns:
            One result for each picture, in their order.

        Raises:
            UserError: a picture is something else, the names cannot be used, the batch size is no whole number above
                0, or scores are asked of a model that sees pictures tile by tile.
        """
        listed, asked = checked_arrays(images, batch_size), self.check_names(names)
        if scores and self.config.inference.resize == "tiled" and self.section == "inference":
            raise UserError(
                "scores of every class are kept of pictures that are seen as a whole, not tile by tile; set "
                "inference.resize to 'short_side' or 'square'"
            )
        return self._answers(asked, listed, self.label(listed, asked.rows, batch_size, scores))

    def segment_in_tiles(
        self, images: Iterable[UInt8[np.ndarray, "h w 3"]], names: Names | ClassList, batch_size: int = 1
    ) -> list[Segmentation]:
        """The same tile by tile, whatever `inference.resize` says: for large pictures, of a model that has `tiles`."""
        assert self.tiles is not None
        listed, asked = checked_arrays(images, batch_size), self.check_names(names)
        return self._answers(asked, listed, self.tiles.label(listed, asked.rows, batch_size))

    def _answers(
        self, asked: ClassList, images: Sequence[UInt8[np.ndarray, "h w 3"]], found: Sequence[Found]
    ) -> list[Segmentation]:
        recipe = (self.recipe if self.section == "zero_shot" else {}) | asked.remark()
        results = []
        for image, one in zip(images, found, strict=True):
            labels, confidence = settle(asked, one.labels, one.confidence, self.calibration)
            scores = None if one.scores is None else settle_scores(asked, one.scores, self.calibration)
            results.append(Segmentation(labels, confidence, asked.names, image, recipe, asked.colors, scores=scores))
        return results

    def segment_many(
        self,
        images: Iterable[Picture],
        names: Names | ClassList,
        batch_size: int = 1,
        scores: bool = False,
        **options: Unpack[Options],
    ) -> list[Segmentation]:
        """Segment several pictures of any kinds; all of them are in memory together.

        Args:
            images: each as for `segment`.
            names: as for `segment`.
            batch_size: pictures that run together, if the model can run several.
            scores: as for `segment`.
            **options: as for `segment`.

        Returns:
            One result for each picture, in their order.

        Raises:
            UserError: a picture or the names cannot be used.
        """
        asked = self.check_names(names, **options)
        pixels = [as_pixels(image) for image in _listed(images)]
        results = self.segment_arrays([picture.rgb for picture in pixels], asked, batch_size, scores)
        return [result.where(picture.valid, picture.place) for result, picture in zip(results, pixels, strict=True)]

    def check_names(self, names: Names | ClassList, **options: Unpack[Options]) -> ClassList:
        """What is asked, as `ClassList.of` understands it.

        Raises:
            UserError: the model does not take it.
        """
        asked = self.accept(ClassList.of(names, **options))
        if self.confidence_kind == "softmax" and asked.has_unknown and len(asked.rows) == 1:
            raise UserError(
                "this model shares a confidence of 1 among the names, and a single name has all of it, so that nothing "
                "is ever below min_confidence; name what may be there instead, as in --background other"
            )
        return asked

    def segment(
        self, image: Picture, names: Names | ClassList, scores: bool = False, **options: Unpack[Options]
    ) -> Segmentation:
        """Segment one picture.

        Args:
            image: a file; a PIL image; an array, best of RGB bytes, uint8 [H, W, 3]; or a file's content (see
                `data.images.as_pixels`).
            names: class names: a list, a dictionary from numbers, a file, or text like "dog|puppy, grass" or
                "@names.txt" (see `text.class_lists.names_of`).
            scores: keep the score of every class in every pixel: 4 bytes for each, so 600 MB for 150 classes in a
                megapixel. There is a row for each class, then one for the background if there is one; none for what
                is unknown.
            **options: `background`, `synonyms`, `min_confidence` and `unknown`, as for `ClassList.of`.

        Returns:
            Labels and confidences at the picture's own size.

        Raises:
            UserError: the picture or the names cannot be used, or scores are asked of a model that sees pictures tile
                by tile.
        """
        if isinstance(image, list | tuple):
            raise UserError(f"the picture is a {type(image).__name__}; give one picture, or use segment_many")
        asked = self.check_names(names, **options)
        picture = as_pixels(image)
        return self.segment_arrays([picture.rgb], asked, scores=scores)[0].where(picture.valid, picture.place)

    def segment_video(
        self,
        path: str | Path,
        names: Names | ClassList,
        *,
        every: int = 1,
        smooth: float = 0.0,
        batch_size: int = 1,
        **options: Unpack[Options],
    ) -> Iterator[SegmentedFrame]:
        """Segment the frames of a video, in memory for two batches of them.

        Args:
            path: of the video.
            names: as for `segment`.
            every: only each n-th frame is segmented, the first one among them.
            smooth: in [0, 1): the weight that earlier frames have in an exponential mean of the scores, which labels
                and confidence are taken from; 0 is no mean, and a frame's labels are those of it as a picture.
            batch_size: frames that run together, if the model can run several.
            **options: as for `segment`.

        Returns:
            Frames as they are done: each with its number in the video, its time in seconds, and its result.

        Raises:
            UserError: the video, the names or an option cannot be used. Damage within a video is no error, but a note.
        """
        check_clip_options(every, smooth)
        asked = self.check_names(names, **options)
        return self._segment_video(path, asked, every, Smoothing(smooth, asked), batch_size)

    def _segment_video(
        self, path: str | Path, asked: ClassList, every: int, smoothing: Smoothing, batch_size: int
    ) -> Iterator[SegmentedFrame]:
        with open_clip(path) as clip:
            wanted = (frame for frame in clip if frame.number % every == 0)
            scores = bool(smoothing.weight)
            segment = partial(self.segment_arrays, names=asked, batch_size=batch_size, scores=scores)
            with contextlib.closing(segment_frames(segment, wanted, smoothing, batch_size)) as batches:
                for batch in batches:
                    yield from batch
            if clip.damage:
                note(clip.damage)

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


def checked_arrays(images: Iterable[Any], batch_size: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """What was given to `segment_arrays`, as a list.

    Raises:
        UserError: see there.
    """
    listed = _listed(images)
    for place, image in enumerate(listed, start=1):
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            shape = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(
                f"picture {place} of {len(listed)} is {shape}; give RGB bytes, uint8 [height, width, 3], or use "
                "segment_many, which takes any picture"
            )
        if not image.size:
            raise UserError(f"picture {place} of {len(listed)} has no pixels, as its shape is {list(image.shape)}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UserError(f"the batch size is {one_line(repr(batch_size), 60)}; give a whole number above 0")
    return listed


def _listed(images: Iterable[Any]) -> list[Any]:
    """Several pictures.

    Raises:
        UserError: it is one, or none at all.
    """
    single = isinstance(images, str | bytes | Path | Image.Image) or getattr(images, "ndim", 4) != 4
    if single or not isinstance(images, Iterable):
        raise UserError(f"the pictures are of the type {type(images).__name__}; give a list, or use segment for one")
    return list(images)
