"""The public door: load a checkpoint, then segment any picture into any classes."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image, ImageOps

from dinov3seg_jax.config import Config, apply_override, from_dict, to_config_dict
from dinov3seg_jax.data.images import read_image
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.class_embeddings import ClassEmbeddings, bucket
from dinov3seg_jax.inference.labels import label_pixels
from dinov3seg_jax.inference.local_global import check_inference, resize_image, score_classes
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.models.parameters import Parameters, bind, build
from dinov3seg_jax.text.prompts import check_names, parse_names

Picture = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]


def load(path: str | Path, overrides: Sequence[str] = ()) -> "Segmenter":
    """Read a trained model.

    Args:
        path: checkpoint folder, or the folder of a run, whose newest checkpoint is read.
        overrides: changes of its config like "inference.image_size=320".

    Raises:
        UserError: there is no checkpoint, or an override does not fit.
    """
    from dinov3seg_jax.training.checkpoint import load_parameters

    config, parameters = load_parameters(path)
    return Segmenter(override_inference(config, overrides), parameters)


def override_inference(config: Config, overrides: Sequence[str]) -> Config:
    """Change how a trained model is used: everything else in its config belongs to its parameters.

    Raises:
        UserError: an override is not of the form inference.option=value, or its option or value does not fit.
    """
    values = to_config_dict(config).to_dict()
    for text in overrides:
        if not text.startswith("inference."):
            raise UserError(f"'{text}' cannot be changed for a trained model; only inference.option=value can")
        apply_override(values, text)
    return from_dict(values, origin="the command line")


class Segmenter:
    """A model that is ready for pictures and class names.

    Programs are compiled on first use for each resized size, batch size and bucket of class counts; with
    `inference.resize = "square"` every picture has the same size.
    """

    def __init__(self, config: Config, parameters: Parameters):
        """Take a config and the model's parameters.

        Raises:
            UserError: the options of `config.inference` do not fit together, or a template has no slot.
        """
        check_inference(config.inference, config.model.vision.patch_size)
        graph, _ = build(config.model)
        self.config = config
        self._parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        self._embed = ClassEmbeddings(
            graph, self._parameters, config.inference.templates, config.model.text.context_length
        )
        self._accepted: dict[tuple[str, ...], tuple[str, ...]] = {}  # checking a thousand names takes a while

        @jax.jit
        def score(
            parameters: Parameters,
            images: UInt8[Array, "b h w 3"],
            text: Float[Array, "1 t d2"],
            class_mask: Bool[Array, "1 t"],
        ) -> Float[Array, "b t h2 w2"]:
            pixels = images.astype(jnp.float32) / 255
            return score_classes(bind(graph, parameters), pixels, text, class_mask, config.inference)

        self._score = score

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
            batch_size: pictures that run together. A batch that is not full is filled up, so that it needs no program
                of its own.

        Returns:
            One result for each picture, in their order.

        Raises:
            UserError: the names cannot be used.
        """
        names = self.check_names(names)
        text, class_mask = self._class_list(names)
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
                pixels = np.stack([resized[index] for index in filled])
                scores = self._score(self._parameters, pixels, text[None], class_mask[None])
                for place, index in enumerate(batch):
                    image = images[index]
                    labels, confidence = label_pixels(scores[place], jnp.asarray(class_mask), *image.shape[:2])
                    results[index] = Segmentation(labels, confidence, names, image)
        return [results[index] for index in range(len(images))]

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
