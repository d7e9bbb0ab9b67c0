"""The public door: load a checkpoint, then segment any picture into any classes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image, ImageOps

from dinov3seg_jax import weights
from dinov3seg_jax.config import Config, apply_override, from_dict, to_config_dict
from dinov3seg_jax.data.images import read_image
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.class_chunks import ClassChunks, ScoredChunk
from dinov3seg_jax.inference.class_embeddings import ClassEmbeddings, bucket
from dinov3seg_jax.inference.devices import make_mesh, on_every_device, on_own_pictures, shared_out
from dinov3seg_jax.inference.embedding_cache import open_cache
from dinov3seg_jax.inference.labels import BestClass, Labelled
from dinov3seg_jax.inference.local_global import check_inference, resize_image, score_classes
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.models.chunked import can_chunk
from dinov3seg_jax.models.parameters import Parameters, bind, build
from dinov3seg_jax.text.prompts import check_names, parse_names

Picture = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]


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


def override_inference(config: Config, overrides: Sequence[str], section: str = "inference") -> Config:
    """Change how a model is used: everything else in its config belongs to its parameters.

    Raises:
        UserError: an override is not of the form section.option=value, or its option or value does not fit.
    """
    values = to_config_dict(config).to_dict()
    for text in overrides:
        if not text.startswith(f"{section}."):
            raise UserError(f"'{text}' cannot be changed for a trained model; only {section}.option=value can")
        apply_override(values, text)
    return from_dict(values, origin="the command line")


class Segmenter:
    """A model that is ready for pictures and class names.

    Programs are compiled on first use for each resized size, batch size and bucket of class counts; with
    `inference.resize = "square"` every picture has the same size.
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
        graph, _ = build(config.model)
        self._take(config, parameters, graph, config.inference.templates, devices=devices)
        mesh = self._mesh

        @jax.jit
        @on_own_pictures(mesh, common=(0, 2, 3))
        def score(
            parameters: Parameters,
            images: UInt8[Array, "b h w 3"],
            text: Float[Array, "1 t d2"],
            class_mask: Bool[Array, "1 t"],
        ) -> Float[Array, "b t h2 w2"]:
            pixels = images.astype(jnp.float32) / 255
            return score_classes(bind(graph, parameters), pixels, text, class_mask, config.inference)

        self._score = score
        self._chunks = ClassChunks(config, graph, mesh) if can_chunk(config.model) else None

    def _take(
        self,
        config: Config,
        parameters: Parameters,
        graph: nnx.GraphDef,
        templates: Sequence[str],
        checksums: Mapping[str, str] | None = None,  # of the parameters, where they are known (see `embedding_cache`)
        devices: Sequence[jax.Device] = (),
    ) -> None:
        self.config = config
        self._parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        self._embed = ClassEmbeddings(
            graph,
            self._parameters,
            templates,
            config.model.text.context_length,
            lambda: open_cache(config.model, self._parameters, checksums),
        )
        self._mesh = make_mesh(devices)
        if self._mesh is not None:
            self._parameters = jax.device_put(self._parameters, on_every_device(self._mesh))
        self._accepted: dict[tuple[str, ...], tuple[str, ...]] = {}  # checking a thousand names takes a while

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
            batch_size: pictures that run together, rounded up to a multiple of the devices. A batch that is not full
                is filled up, so that it needs no program of its own.

        Returns:
            One result for each picture, in their order.

        Raises:
            UserError: the names cannot be used.
        """
        names = self.check_names(names)
        options, patch_size = self.config.inference, self.config.model.vision.patch_size
        resized = [resize_image(image, options, patch_size) for image in images]
        same_size: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(resized):
            same_size.setdefault(picture.shape, []).append(index)
        devices = 1 if self._mesh is None else self._mesh.size
        batch_size = -(-batch_size // devices) * devices
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
                so_far.update(_pick(scores, place, mesh=mesh), class_mask, first)
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
        listed = parse_names(names) if isinstance(names, str) else tuple(names)
        if listed not in self._accepted:
            embed = self._embed
            self._accepted[listed] = check_names(listed, embed.tokenizer, embed.templates, embed.context_length)
        return self._accepted[listed]

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


@partial(jax.jit, static_argnames="mesh")
def _pick(scores: Float[Array, "b t h w"], place: int, *, mesh: Mesh | None) -> Float[Array, "n t h w"]:
    """The scores of one picture of each device."""

    @on_own_pictures(mesh, common=(1,))
    def pick(scores: Array, place: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(scores, place, 1)

    return pick(scores, place)


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
