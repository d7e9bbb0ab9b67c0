"""Local-global inference (§7): windows for detail, the whole picture for context, as pure functions of arrays."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.data.resize import resize
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.views.windows import gather, merge, plan_windows, window_size
from dinov3seg_jax.models.chunked import prepare_scene
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.scene import ImageFeatures, Scene

if TYPE_CHECKING:
    from dinov3seg_jax.models.dinov3seg import SegmentationModel  # whose Flax takes a while to import

LONGEST_FOR_SIDE = 4  # CAT-Seg's 2560 for a short side of 640
WINDOWS_AT_ONCE = 36  # 3 x 3 windows of four pictures; more run one batch after the other, to bound memory


def check_inference(config: InferenceConfig, patch_size: int) -> None:
    """Refuse sizes that do not fall on the patch grid, where windows' features could not be merged.

    Raises:
        UserError: the mode is that of a linear head, a size in use is no multiple of the patch size, or the stride
            leaves gaps between the windows.
    """
    if config.mode == "slide":
        raise UserError("inference.mode 'slide' is for a linear head only; set it to 'local_global' or 'whole'")
    of_windows = () if config.mode == "whole" else ("window", "stride", "global_size")
    catseg = config.resize == "catseg"
    if config.view_size and not catseg:
        raise UserError("inference.view_size is for resize 'catseg'; set it to 0.")
    if catseg and (config.fusion == "features" or config.mode == "whole" or config.global_size):
        raise UserError(
            "inference.resize 'catseg' goes with mode 'local_global', fusion 'logits' and global_size 0; set those."
        )
    in_patches = ("view_size",) if catseg else ("image_size", *of_windows)
    for option in in_patches:
        value = getattr(config, option)
        if value % patch_size:
            below, above = value // patch_size * patch_size, -(-value // patch_size) * patch_size
            choice = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"inference.{option} is {value}, which is no multiple of the patch size {patch_size}; use {choice}"
            )
    if of_windows and config.stride > config.window:
        raise UserError(
            f"inference.stride {config.stride} is larger than inference.window {config.window} and leaves gaps; "
            f"use {config.window} or less"
        )


def resize_image(image: UInt8[np.ndarray, "h w 3"], config: InferenceConfig, patch_size: int) -> np.ndarray:
    """Bring a picture to the size that `config.resize` asks for, with antialiased bilinear weights.

    - "square": image_size x image_size; the aspect ratio is lost, as in the paper.
    - "short_side": the short side becomes image_size, the aspect ratio stays.
    - "native": the picture keeps its size.
    - "tiled": as "square", of a part of the picture that is a square already (see `tiles`).

    In the middle two the long side is at most `LONGEST_FOR_SIDE` times image_size; where it would be longer, both sides
    shrink. Each side is rounded to a multiple of the patch size, at least one patch.

    Args:
        image: RGB of any size.
        config: `resize` and `image_size`.
        patch_size: in pixels.

    Returns:
        uint8 [H, W, 3], sides multiples of the patch size.
    """
    size = resized_size((image.shape[0], image.shape[1]), config, patch_size)
    if size == image.shape[:2]:
        return image
    return resize(image, size, Image.Resampling.BILINEAR)


def resized_size(size: tuple[int, int], config: InferenceConfig, patch_size: int) -> tuple[int, int]:
    """Height and width that `resize_image` brings a picture of height and width `size` to."""
    if config.resize in ("square", "tiled"):
        return config.image_size, config.image_size
    scale = config.image_size / min(size) if config.resize == "short_side" else 1.0
    scale = min(scale, LONGEST_FOR_SIDE * config.image_size / max(size))
    return _round_to(size[0] * scale, patch_size), _round_to(size[1] * scale, patch_size)


def score_classes(
    model: "SegmentationModel",
    images: Float[Array, "b height width 3"],
    text: Float[Array, "b t d2"],
    class_mask: Bool[Array, "b t"] | None,
    config: InferenceConfig,
) -> Float[Array, "b t h w"]:
    """Score every class everywhere.

    Args:
        model: with its parameters.
        images: RGB in [0, 1], already resized; the sides are multiples of the patch size.
        text: class embeddings of each image, or [1, t, d2] for all of them.
        class_mask: False for entries that only fill the list up to a static length; [1, t] for all images.
        config: accepted by `check_inference`.

    Returns:
        Float32 scores in [0, 1]: with `fusion = "logits"` at the images' size, else at the decoder's, a quarter of it
        for patches of 16 pixels, which saves memory and is for the caller to resize.
    """
    b = images.shape[0]
    text = jnp.broadcast_to(text, (b, *text.shape[1:]))
    class_mask = None if class_mask is None else jnp.broadcast_to(class_mask, (b, class_mask.shape[1]))
    if config.mode == "whole":
        return jax.nn.sigmoid(model(images, text, class_mask).logits)
    size = images.shape[1], images.shape[2]
    corners = plan_windows(*size, config.window, config.stride)
    overview = global_size(size, config, model.config.vision.patch_size)
    if config.fusion == "features":
        features = fuse_features(model, images, corners, config)
        return jax.nn.sigmoid(model.segment(images, features, text, class_mask).logits)

    def decode(views: Array, text: Array, class_mask: Array | None) -> Array:
        return model(views, text, class_mask).logits

    n = len(corners)
    shape = window_size(*size, config.window)
    mask = None if class_mask is None else jnp.repeat(class_mask, n, axis=0)
    local = _in_batches(decode, gather(images, corners, shape), jnp.repeat(text, n, axis=0), mask)
    whole = decode(resize_linear(images, *overview), text, class_mask)
    return blend_logits(local.reshape(b, n, *local.shape[1:]), whole, corners, shape, overview, size)


def prepare_scenes(
    model: "SegmentationModel", images: Float[Array, "b height width 3"], config: InferenceConfig
) -> tuple[Scene, ...]:
    """What `score_classes` knows before it sees a class: one scene, or with `fusion = "logits"` windows and whole."""
    size = images.shape[1], images.shape[2]
    if config.mode == "whole":
        return (prepare_scene(model, images, model.encode_image(images)),)
    corners = plan_windows(*size, config.window, config.stride)
    if config.fusion == "features":
        return (prepare_scene(model, images, fuse_features(model, images, corners, config)),)

    def encode(views: Array) -> Scene:
        return prepare_scene(model, views, model.encode_image(views))

    overview = global_size(size, config, model.config.vision.patch_size)
    windows = gather(images, corners, window_size(*size, config.window))
    return _in_batches(encode, windows), encode(resize_linear(images, *overview))


def score_logits(
    local: Float[Array, "m t h w"],
    whole: Float[Array, "b t gh gw"],
    size: tuple[int, int],
    config: InferenceConfig,
    patch_size: int,
) -> Float[Array, "b t h2 w2"]:
    """The scores that `score_classes` returns with `fusion = "logits"`, from the logits of both `prepare_scenes`."""
    corners = plan_windows(*size, config.window, config.stride)
    local = local.reshape(len(whole), len(corners), *local.shape[1:])
    overview = global_size(size, config, patch_size)
    return blend_logits(local, whole, corners, window_size(*size, config.window), overview, size)


def global_size(size: tuple[int, int], config: InferenceConfig, patch_size: int) -> tuple[int, int]:
    """Height and width of the global view.

    It fits a square of `config.global_size` pixels with the picture's aspect ratio. Where that is 0 it is the picture
    itself, or with `fusion = "logits"`, as in CAT-Seg, of the windows' size.
    """
    side = config.global_size or (config.window if config.fusion == "logits" else max(size))
    height, width = (_round_to(length * side / max(size), patch_size) for length in size)
    return height, width


def fuse_features(
    model: "SegmentationModel",
    images: Float[Array, "b height width 3"],
    corners: Int[np.ndarray, "n 2"],
    config: InferenceConfig,
) -> ImageFeatures:
    """The paper's fusion: the mean of the windows' merged features and the global view's, and the latter's prior."""
    patch = model.config.vision.patch_size
    size = images.shape[1], images.shape[2]
    overview = global_size(size, config, patch)
    whole = model.encode_image(resize_linear(images, *overview))
    if len(corners) == 1 and overview == size:  # the only window is the global view
        return whole
    grid = size[0] // patch, size[1] // patch
    windows = gather(images, corners, window_size(*size, config.window))
    local = merge(_in_batches(lambda views: model.encode_patches(views).patches, windows), corners // patch, grid)
    return ImageFeatures((local + resize_linear(whole.patches, *grid)) / 2, whole.prior)


def blend_logits(
    local: Float[Array, "b n t h w"],
    whole: Float[Array, "b t gh gw"],
    corners: Int[np.ndarray, "n 2"],
    window: tuple[int, int],
    overview: tuple[int, int],
    size: tuple[int, int],
) -> Float[Array, "b t height width"]:
    """CAT-Seg's blending: the windows' mean probability, averaged with the global view's.

    Logits are resized to their view's own pixels before the sigmoid, and probabilities after it. One class after the
    other, so that only the result holds every class at full size.

    Args:
        local: logits of the windows.
        whole: logits of the global view.
        corners: of the windows, in pixels.
        window: height and width of a window in pixels.
        overview: height and width of the global view in pixels.
        size: height and width of the result.
    """

    def probability(logits: Array, pixels: tuple[int, int]) -> Float[Array, "m height width 1"]:
        return jax.nn.sigmoid(resize_linear(logits[..., None], *pixels))

    def blend(logits: tuple[Array, Array]) -> Float[Array, "b height width"]:
        windows, overall = logits
        merged = merge(probability(windows.reshape(-1, *windows.shape[2:]), window), corners, size)
        return ((merged + resize_linear(probability(overall, overview), *size)) / 2)[..., 0]

    by_class = jax.lax.map(blend, (jnp.moveaxis(local, 2, 0), jnp.moveaxis(whole, 1, 0)))
    return jnp.moveaxis(by_class, 0, 1)


def _in_batches(run: Callable[..., Any], windows: Float[Array, "m wh ww 3"], *others: Array | None) -> Any:
    """Run all windows, and rows that go with them, at once, or `WINDOWS_AT_ONCE` after another where there are more."""
    if windows.shape[0] <= WINDOWS_AT_ONCE:
        return run(windows, *others)

    def run_one(row: tuple[Array | None, ...]) -> Any:
        return jax.tree.map(lambda x: x[0], run(*jax.tree.map(lambda x: x[None], row)))

    return jax.lax.map(run_one, (windows, *others), batch_size=WINDOWS_AT_ONCE)


def _round_to(length: float, unit: int) -> int:
    return max(unit, int(length / unit + 0.5) * unit)
