"""The public door: load a checkpoint, then segment any picture into any classes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image, ImageOps

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import Config, override_inference
from dinov3seg_jax.data.images import read_image
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.classes.chunks import ClassChunks, ScoredChunk
from dinov3seg_jax.inference.classes.embedding_cache import open_cache
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, EncodeText, bucket, text_encoder
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.device.sharing import make_mesh, on_every_device, on_own_pictures, shared_out
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.views.blend import Shapes, label_tiles
from dinov3seg_jax.inference.views.labels import BestClass, Labelled
from dinov3seg_jax.inference.views.local_global import check_inference, resize_image, score_classes
from dinov3seg_jax.inference.views.tiles import ArraySource, Tiling, plan_tiles, tile_stride
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.chunked import can_chunk
from dinov3seg_jax.models.parameters import Parameters, bind_frozen
from dinov3seg_jax.store import converted as weights
from dinov3seg_jax.text.prompts import check_names, parse_names

Picture = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]

BAND_BYTES = 2**30  # of the scores that are blended together
DECODER_SCALE = 4  # of its grid to that of its input
LISTS_KNOWN = 64  # of names
MAPS_PER_VIEW = 16  # of all channels that exist at once, roughly


def load(path: str | Path, overrides: Sequence[str] = ()) -> "Segmenter":
    """Read a model.

    Args:
        path: the folder of a run, whose newest checkpoint is read; or of converted dinov3.txt weights, which segment
            without training (see `inference.zero_shot`).
        overrides: changes of its config like "inference.image_size=320", or "zero_shot.mode=whole" for dinov3.txt.

    Raises:
        UserError: there is no model, or an override does not fit.
    """
    if weights.is_converted(path):
        from dinov3seg_jax.inference import zero_shot

        return zero_shot.load(path, overrides)
    from dinov3seg_jax.training.checkpoint import load_parameters

    config, parameters = load_parameters(path)
    return of_run(override_inference(config, overrides), parameters)


def of_run(config: Config, parameters: Parameters, devices: Sequence[jax.Device] = ()) -> "Segmenter":
    """The segmenter that fits a run's model.

    Args:
        config, parameters: of the run.
        devices: that share batches of pictures out, as far as the model can; default the first.

    Raises:
        UserError: the options of `config.inference` do not fit together.
    """
    if not config.model.linear.classes:
        return Segmenter(config, parameters, devices)
    from dinov3seg_jax.inference.linear import LinearSegmenter

    return LinearSegmenter(config, parameters)


class Segmenter:
    """A model that is ready for pictures and class names.

    Programs are compiled on first use for each resized size, batch size and bucket of class counts; with
    `inference.resize = "square"` every picture has the same size, and with "tiled" is cut into tiles that have.
    """

    def __init__(self, config: Config, parameters: Parameters, devices: Sequence[jax.Device] = ()):
        """Take a config, the model's parameters, and the devices of this process that share batches out.

        Raises:
            UserError: the options of `config.inference` do not fit together, or a template has no slot.
        """
        check_inference(config.inference, config.model.vision.patch_size)
        if config.inference.best_classes and not can_chunk(config.model):
            raise UserError(
                "inference.best_classes needs linear class attention without CAT-Seg's padding; set it to 0, or "
                "model.late.max_classes for CAT-Seg's own truncation."
            )
        config, parameters = at_precision(config, parameters)
        self._take(config, parameters, text_encoder(config.model), config.inference.templates, devices=devices)
        mesh = self._mesh

        @jit
        @on_own_pictures(mesh, common=(0, 2, 3))
        @traced_once((config.model, config.inference))
        def score(
            parameters: Parameters,
            images: UInt8[Array, "b h w 3"],
            text: Float[Array, "1 t d2"],
            class_mask: Bool[Array, "1 t"],
        ) -> Float[Array, "b t h2 w2"]:
            pixels = images.astype(jnp.float32) / 255
            return score_classes(bind_frozen(config.model, parameters), pixels, text, class_mask, config.inference)

        self._score = score
        self._chunks = ClassChunks(config, mesh) if can_chunk(config.model) else None

    def _take(
        self,
        config: Config,
        parameters: Parameters,
        encode_text: EncodeText,
        templates: Sequence[str],
        checksums: Mapping[str, str] | None = None,  # of the parameters, where they are known (see `embedding_cache`)
        devices: Sequence[jax.Device] = (),
    ) -> None:
        self.config = config
        self._parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        self._embed = ClassEmbeddings(
            encode_text,
            self._parameters,
            templates,
            config.model.text.context_length,
            lambda: open_cache(config.model, self._parameters, checksums),
        )
        self._mesh = make_mesh(devices)
        if self._mesh is not None:
            self._parameters = jax.device_put(self._parameters, on_every_device(self._mesh))
        accept = partial(
            check_names, tokenizer=self._embed.tokenizer, templates=templates, context_length=self._embed.context_length
        )
        self._accept = lru_cache(LISTS_KNOWN)(accept)  # checking a thousand names takes a while

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

    def segment_arrays(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]], names: Sequence[str] | str, batch_size: int = 1
    ) -> list[Segmentation]:
        """Segment pictures of any sizes, in batches of those that have the same size once resized.

        Args:
            images: RGB.
            names: as in `segment`.
            batch_size: pictures, or tiles of them, that run together, rounded up to a multiple of the devices. A batch
                that is not full is filled up, so that it needs no program of its own.

        Returns:
            One result for each picture, in their order.

        Raises:
            UserError: the names cannot be used.
        """
        names = self.check_names(names)
        batch_size = self._whole_batch(batch_size)
        if self.config.inference.resize == "tiled":
            return self._segment_tiled(images, names, batch_size)
        options, patch_size = self.config.inference, self.config.model.vision.patch_size
        resized = [resize_image(image, options, patch_size) for image in images]
        same_size: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(resized):
            same_size.setdefault(picture.shape, []).append(index)
        results: dict[int, Segmentation] = {}
        for group in same_size.values():
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                filled = batch + batch[-1:] * (batch_size - len(batch))
                sizes = [images[index].shape[:2] for index in filled]
                found = self._label_batch(np.stack([resized[index] for index in filled]), sizes, len(batch), names)
                for index, labelled in zip(batch, found, strict=True):
                    results[index] = Segmentation(*labelled, names, images[index])
        return [results[index] for index in range(len(images))]

    def _segment_tiled(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]], names: tuple[str, ...], batch_size: int
    ) -> list[Segmentation]:
        shapes = self.tile_shapes(len(names))
        widest = max(BAND_BYTES // (4 * shapes.classes * (shapes.cells + 1)), shapes.cells)
        work = ((ArraySource(image), self.plan_tiles(image.shape[0], image.shape[1])) for image in images)
        labels = [np.empty(image.shape[:2], np.int32) for image in images]
        confidence = [np.empty(image.shape[:2], np.float32) for image in images]
        for piece in label_tiles(work, partial(self.score_tiles, names=names), shapes, batch_size, widest):
            height, width = piece.labels.shape
            place = slice(piece.top, piece.top + height), slice(piece.left, piece.left + width)
            labels[piece.picture][place] = piece.labels
            confidence[piece.picture][place] = piece.confidence
        found = zip(labels, confidence, images, strict=True)
        return [Segmentation(chosen, score, names, image) for chosen, score, image in found]

    def plan_tiles(self, height: int, width: int) -> Tiling:
        """The tiles of a picture of any size; see `tiles`."""
        return plan_tiles(height, width, self.config.inference, self.config.model.vision.patch_size)

    def tile_shapes(self, classes: int) -> Shapes:
        """What the tiles of all pictures have in common, for a list of so many classes."""
        options, model = self.config.inference, self.config.model
        side, patch_size = options.image_size, model.vision.patch_size
        pixels = options.fusion == "logits" and options.mode != "whole"
        cells = side if pixels else side // patch_size * model.early.factor * DECODER_SCALE
        return Shapes.of(side, cells, classes, tile_stride(options, patch_size), options.tile_scale)

    def score_tiles(
        self, pixels: UInt8[np.ndarray, "b side side 3"], names: Sequence[str]
    ) -> Float[np.ndarray, "b t g g"]:
        """Scores of all names on tiles, on the host; a class that `best_classes` rejects in a tile has 0 there."""
        found = np.zeros(0, np.float32)
        on_devices = pixels if self._mesh is None else jax.device_put(pixels, shared_out(self._mesh))
        for first, scores, _, lists in self._score_list(on_devices, names):
            part = np.asarray(scores, np.float32)
            if lists is None and part.shape[1] >= len(names):
                return part[:, : len(names)]
            if not found.size:
                found = np.zeros((len(pixels), len(names), *part.shape[2:]), np.float32)
            meant = np.broadcast_to(np.arange(len(names)), (len(part), len(names))) if lists is None else lists
            for place, own in enumerate(part):
                classes = meant[place][first : first + len(own)]
                found[place, classes] = own[: len(classes)]
        return found

    def held_bytes(self) -> int:
        """Of the parameters, and of what is kept of all classes between the blocks."""
        kept = self.config.inference.kept_megabytes * 2**20
        return kept + sum(value.nbytes for value in self._parameters.values())

    def tile_bytes(self) -> int:
        """What running one tile takes beyond its scores, roughly: a few maps of all patches of all its views."""
        options, vision = self.config.inference, self.config.model.vision
        side, window = options.image_size, min(options.window, options.image_size)
        windows = 0 if options.mode == "whole" else len(plan_windows(side, side, window, min(options.stride, window)))
        patches = (side**2 + windows * window**2) // vision.patch_size**2
        return 4 * MAPS_PER_VIEW * patches * vision.dim

    def _whole_batch(self, batch_size: int) -> int:
        devices = 1 if self._mesh is None else self._mesh.size
        return -(-batch_size // devices) * devices

    def _label_batch(
        self,
        pixels: UInt8[np.ndarray, "b h w 3"],
        sizes: Sequence[tuple[int, int]],
        wanted: int,
        names: Sequence[str],
    ) -> list[Labelled]:
        """Labels and confidence of the first `wanted` pictures, resized to `sizes`."""
        mesh = self._mesh
        each = len(pixels) // (1 if mesh is None else mesh.size)
        # Labelled together: the first picture of every device, then the second of every device, ...
        together = [range(place, len(pixels), each) for place in range(min(each, wanted))]
        best = [BestClass([sizes[place] for place in places], mesh) for places in together]
        on_devices = pixels if mesh is None else jax.device_put(pixels, shared_out(mesh))
        lists = None
        for first, scores, class_mask, kept in self._score_list(on_devices, names):
            lists = kept
            for place, so_far in enumerate(best):
                so_far.update(scores, class_mask, first, place)
        found = {
            place: labelled
            for places, so_far in zip(together, best, strict=True)
            for place, labelled in zip(places, so_far.results(), strict=True)
        }
        if lists is not None:
            found = {place: (lists[place][labels], confidence) for place, (labels, confidence) in found.items()}
        return [found[place] for place in range(wanted)]

    def check_names(self, names: Sequence[str] | str) -> tuple[str, ...]:
        """The class names, parsed if they are text.

        Raises:
            UserError: a name is empty, doubled or too long, or there is none.
        """
        return self._accept(parse_names(names) if isinstance(names, str) else tuple(names))

    def _score_list(self, pixels: UInt8[np.ndarray | Array, "b h w 3"], names: Sequence[str]) -> Iterator[ScoredChunk]:
        """Scores of all names, a few at a time where the model allows it."""
        if self._chunks is not None:
            yield from self._chunks(self._parameters, pixels, self._embed(names))
        else:
            text, class_mask = self._class_list(names)
            scores = self._score(self._parameters, pixels, text[None], class_mask[None])
            yield ScoredChunk(0, scores, jnp.asarray(class_mask))

    def _class_list(self, names: Sequence[str]) -> tuple[Float[np.ndarray, "t d2"], Bool[np.ndarray, " t"]]:
        """Embeddings filled up with zeros to a length that lists share, and which entries are names."""
        embeddings = self._embed(names)
        missing = bucket(len(names)) - len(names)
        return np.pad(embeddings, ((0, missing), (0, 0))), np.arange(len(names) + missing) < len(names)


def as_array(image: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in any of the accepted forms as RGB bytes.

    Raises:
        UserError: the file cannot be read, or the array is no RGB picture.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"the image is {image.dtype} {list(image.shape)}; give RGB bytes, uint8 [height, width, 3]")
    return image
