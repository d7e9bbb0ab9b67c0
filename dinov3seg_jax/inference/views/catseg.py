"""The five views in which CAT-Seg sees a picture (its specification, section 7), on the host."""

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from dinov3seg_jax.config import InferenceConfig
from dinov3seg_jax.data.resize import resize
from dinov3seg_jax.data.transforms import short_side_size
from dinov3seg_jax.inference.views.local_global import LONGEST_FOR_SIDE
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.functions import half_pixel_weights

GRID = 24  # patches along a view, in the released models


def seen_side(options: InferenceConfig, patch_size: int) -> int:
    """The side at which the model sees a view: as cut or, where that is no whole number of patches, 24 of them."""
    as_cut = options.window if options.window % patch_size == 0 else GRID * patch_size
    return options.view_size or as_cut


def load_picture(image: UInt8[np.ndarray, "h w 3"], short_side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The picture as the loader hands it on: resized in bytes by Pillow, the long side four times the short at most."""
    size = short_side_size(image.shape[0], image.shape[1], short_side, LONGEST_FOR_SIDE * short_side)
    return resize(image, size, Image.Resampling.BILINEAR)


def cut_views(
    loaded: UInt8[np.ndarray, "h w 3"], square: int, window: int, stride: int
) -> Float[np.ndarray, "n window window 3"]:
    """Windows of the picture as a square, row by row, and last the whole of it, not by way of the square.

    Args:
        loaded: RGB, of `load_picture`.
        square: side that windows are cut from.
        window, stride: of the windows.

    Returns:
        RGB in 0..255.
    """
    whole = stretched(loaded, square)
    corners = plan_windows(square, square, window, stride)
    windows = [whole[row : row + window, column : column + window] for row, column in corners]
    return np.stack([*windows, stretched(loaded, window)])


def stretched(image: Shaped[np.ndarray, "h w 3"], side: int) -> Float[np.ndarray, "side side 3"]:
    """Bilinear to a square, half-pixel centres, no antialiasing."""
    rows, columns = (half_pixel_weights(length, side).astype(np.float32) for length in image.shape[:2])
    high = np.tensordot(rows, image.astype(np.float32), axes=(1, 0))  # [side, w, 3]
    return np.einsum("cw,rwk->rck", columns, high, optimize=True)
