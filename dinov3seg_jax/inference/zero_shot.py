"""dinov3.txt or TIPSv2 alone as a segmenter (§8; DINOv3's specification, 11.2; TIPSv2's, 8): no head, no training.

Each patch gets the cosine of its features with each class's text embedding, with its local half where it has two.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from dinov3seg_jax.cache.traced import traced_once
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.base import NO_CHECKSUMS, BaseSegmenter
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, text_encoder
from dinov3seg_jax.inference.device.jit import jit
from dinov3seg_jax.inference.device.precision import runnable
from dinov3seg_jax.inference.recipes import describe_zero_shot
from dinov3seg_jax.inference.views.labels import Found, label_pixels, resize_scores
from dinov3seg_jax.inference.views.sliding import WINDOWS_AT_ONCE, Views, batches, cut, find_in_views
from dinov3seg_jax.inference.views.windows import plan_windows, window_size
from dinov3seg_jax.models.functions import l2_normalize, resize_cubic
from dinov3seg_jax.models.graph import any_values, bind, describe
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.models.pixels import normalize_pixels
from dinov3seg_jax.models.towers import TOWERS, TwoTowers
from dinov3seg_jax.text.class_lists import ClassList, NamedClass
from dinov3seg_jax.text.prompts import load_templates

LONGEST_FOR_SIDE = 8  # ours: longer pictures are made smaller still

CONVERTED_TOGETHER = {
    "dinotxt": "convert dinov3.txt's file and its backbone's together",
    "tips": "convert the files of both TIPSv2's towers together",
}

PatchFeatures = Literal["backbone", "head"]


class ZeroShotSegmenter(BaseSegmenter):
    """Two towers, ready for pictures and class names by the recipe of `config.zero_shot`.

    The encoder is compiled on first use for each size of window (mode "whole": of picture) and number of windows; what
    comes after it, for each bucket of class counts and of sizes.
    """

    section: ClassVar[Literal["inference", "zero_shot"]] = "zero_shot"

    def __init__(self, config: Config, parameters: Parameters, checksums: Mapping[str, str] = NO_CHECKSUMS):
        """Take a config and the towers' parameters, and their checksums where they are known.

        Raises:
            UserError: the stride leaves gaps between the windows, a parameter is missing, or the towers are CLIP's.
        """
        config, recipe = dataclasses.replace(config, model=runnable(config.model)), config.zero_shot
        if recipe.mode == "slide" and recipe.stride > recipe.window:
            raise UserError(
                f"zero_shot.stride {recipe.stride} is larger than zero_shot.window {recipe.window} and leaves gaps; "
                f"use {recipe.window} or less."
            )
        if config.model.towers not in CONVERTED_TOGETHER:
            raise UserError(
                "CLIP's towers alone do not segment: their patches are not aligned with text; name them in "
                "--config.init_from to train the method on them, or use CAT-Seg's weights."
            )
        graph, described = describe(lambda: TwoTowers(config.model, rngs=any_values()))
        missing = sorted(described.keys() - parameters.keys())
        if missing:
            raise UserError(
                f"the weights lack {len(missing)} arrays of the two towers, such as '{missing[0]}'; "
                f"{CONVERTED_TOGETHER[config.model.towers]}."
            )
        towers = {name: parameters[name] for name in described}

        self.config = config
        self.confidence_kind = "sigmoid" if recipe.mode == "whole" else "softmax"
        self.parameters = {name: jnp.asarray(value) for name, value in towers.items()}
        templates = load_templates(recipe.templates)
        self.embed = ClassEmbeddings.cached(
            text_encoder(config.model, partial(bind, graph)), self.parameters, templates, config.model, checksums
        )

        @jit
        @traced_once((config.model, recipe))
        def encode(parameters: Parameters, pixels: Float[Array, "n h w 3"]) -> Float[Array, "n gh gw d"]:
            return encode_patches(bind(graph, parameters), pixels, recipe.patch_features)

        self._encode = encode

    def describe(self) -> str:
        """See `BaseSegmenter`."""
        return describe_zero_shot(self.config.zero_shot, self.config.model.towers)

    def accept(self, asked: ClassList) -> ClassList:
        """See `BaseSegmenter`: a name must not be empty, doubled or too long for a prompt."""
        return self.embed.accept(asked)

    def view_patches(self) -> int:
        """See `BaseSegmenter`."""
        recipe = self.config.zero_shot
        pixels = recipe.short_side**2 if recipe.mode == "whole" else WINDOWS_AT_ONCE * recipe.window**2
        return pixels // self.config.model.vision.patch_size**2

    def label(
        self,
        images: list[UInt8[np.ndarray, "h w 3"]],
        classes: Sequence[NamedClass],
        batch_size: int,
        scores: bool = False,
    ) -> list[Found]:
        """See `BaseSegmenter`: one after the other, as the windows of one are the batch; `batch_size` is not used.

        The confidence is the mean of the windows' softmax over the cosines, which is nearly the same for all classes;
        in mode "whole" it is (1 + cosine) / 2.
        """
        text, class_mask = self.embed.filled(classes)
        local = text[:, -self.config.model.vision.shared_dim :]
        recipe, mask = self.config.zero_shot, jnp.asarray(class_mask)
        results = []
        for image in images:
            own = image.shape[0], image.shape[1]
            resized = resize_as_torchvision(image, recipe.short_side, LONGEST_FOR_SIDE)
            size = resized.shape[0], resized.shape[1]
            if recipe.mode == "whole":
                (cosines,) = self._compare(_floats(resized[None]), local)
                maps = (1 + cosines) / 2
                found = Found(*label_pixels(maps, mask, *own), resize_scores(maps, *own) if scores else None)
            else:
                corners = plan_windows(*size, recipe.window, recipe.stride)
                window = window_size(*size, recipe.window)
                views = Views(self._compare(_floats(cut(resized, corners, window)), local), corners, window, size)
                found = find_in_views(views, mask, *own, softmax="windows", scores=scores)
            results.append(found)
        return results

    def _compare(
        self, windows: Float[np.ndarray, "n height width 3"], local: Float[np.ndarray, "t d"]
    ) -> Float[Array, "n t h w"]:
        """Cosines of all patches of windows, whose pixels are in [0, 1]."""
        model = self.config.model
        pixels = normalize_pixels(jnp.asarray(windows), TOWERS[model.towers].pixels)
        stretched = stretch(pixels, model.vision.patch_size)
        parts = [_cosines(self._encode(self.parameters, part), local) for part in batches(stretched)]
        return jnp.concatenate(parts)[: len(windows)]


def encode_patches(
    towers: TwoTowers, pixels: Float[Array, "n height width 3"], patch_features: PatchFeatures
) -> Float[Array, "n h w d"]:
    """Patch features of unit length.

    Args:
        towers: with their parameters.
        pixels: normalised; the sides are multiples of the patch size.
        patch_features: "head": after dinov3.txt's vision head, or of TIPSv2's value path; "backbone": the normalised
            features before it, which dinov3.txt's published notebook uses.
    """
    features = towers.vision(pixels)
    return l2_normalize(features.patches if patch_features == "head" else features.backbone_patches)


@jax.jit
def _cosines(patches: Float[Array, "n h w d"], local: Float[Array, "t d"]) -> Float[Array, "n t h w"]:
    return jnp.einsum("nhwd,td->nthw", patches, local, precision=jax.lax.Precision.HIGHEST)


def _floats(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 3"]:
    return images.astype(np.float32) / 255


def resize_as_torchvision(image: UInt8[np.ndarray, "h w 3"], size: int, longest: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pillow's bicubic resize to a short side of `size` pixels, the long side cut to a pixel.

    Where the long side would exceed `longest` times `size`, both sides shrink [ours].
    """
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    scaled = (size, int(size * long / short))
    if scaled[1] > longest * size:
        scaled = (max(int(longest * size * short / long), 1), int(longest * size))
    rows, columns = scaled if height <= width else scaled[::-1]
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))


def stretch(windows: Float[np.ndarray | Array, "n h w 3"], patch_size: int) -> Float[Array, "n h2 w2 3"]:
    """Bring both sides to the next multiple of the patch size; bicubic, see `functions.resize_cubic`."""
    height, width = (-(-side // patch_size) * patch_size for side in windows.shape[1:3])
    return resize_cubic(jnp.asarray(windows), height, width)
