"""Arrays of any library as RGB bytes, where there is no doubt what they mean."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from dinov3seg_jax.data.paper import on_white
from dinov3seg_jax.data.stretch import full_range, note_if_dark, to_bytes
from dinov3seg_jax.errors import UserError, reason

EXPECTED = "give RGB bytes, uint8 [height, width, 3]"


def is_array(thing: object) -> bool:
    """Whether it says of itself that it is one, as those of NumPy, JAX and PyTorch do."""
    return hasattr(thing, "__array__") or hasattr(thing, "__array_interface__") or hasattr(thing, "__dlpack__")


def from_array(given: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in an array of NumPy, JAX, PyTorch (on the CPU) or another library that NumPy understands.

    Args:
        given: [H, W] or [H, W, 1], grey; [H, W, 3], RGB; or [H, W, 4], RGB and alpha, which is laid on white. Of bytes;
            of bools, white where True; of uint16, which are divided by 257; or of other integers in 0..255 and floats
            in 0..1 or 0..255, as in `images.read_image`, of which none may be infinite or NaN. Floats of which the
            largest lies between 1 and 2 are neither for certain, and refused.

    Returns:
        uint8 [H, W, 3]; RGB bytes are returned as they are, not copied.

    Raises:
        UserError: it is none of these.
    """
    image = _numpy(given)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    what = f"the image is {image.dtype} {list(image.shape)}"
    if not image.size:
        raise UserError(f"{what}, which is empty; {EXPECTED}")
    if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4):
        raise UserError(f"{what}, channels first; transpose it, as image.transpose(1, 2, 0) does for NumPy")
    if image.ndim == 4:
        raise UserError(f"{what}, a batch; give its pictures one by one, as in image[0]")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(f"{what}; {EXPECTED}")
    if image.dtype.kind not in "buif":
        raise UserError(f"{what}, which holds no shades; {EXPECTED}")
    layers = image if image.ndim == 3 else image[..., None]
    full = full_range(image.dtype) or _range(layers, what)
    if image.dtype != np.uint8:
        note_if_dark("the image", float(layers[..., :3].max()), full[1], "scale it")
    shades = to_bytes(layers, full)
    if layers.shape[2] == 4:
        return on_white(shades[..., :3], shades[..., 3], premultiplied=False)
    return np.array(np.broadcast_to(shades, (*shades.shape[:2], 3)))


def _numpy(given: Any) -> np.ndarray:
    if isinstance(given, np.ma.MaskedArray):
        raise UserError("the image is a masked array; fill what is masked, as image.filled(0) does")
    try:
        array = np.from_dlpack(given) if not hasattr(given, "__array__") and hasattr(given, "__dlpack__") else None
        array = np.asarray(given) if array is None else array
    except Exception as error:  # as many kinds as there are libraries
        raise UserError(
            f"the image, a {type(given).__name__}, gives no NumPy array ({reason(error)}); bring it to the CPU "
            "and make it one, as image.detach().cpu().numpy() does for PyTorch"
        ) from error
    small_floats = array.dtype.kind == "V" and "float" in array.dtype.name  # those of ml_dtypes
    return array.astype(np.float32) if small_floats else array


def _range(image: np.ndarray, what: str) -> tuple[float, float]:
    """What is white, of numbers whose kind does not say it."""
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise UserError(f"{what} and holds NaN or infinite values; give values in 0..1 or 0..255")
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 255:
        raise UserError(f"{what} and holds values from {low:g} to {high:g}; give values in 0..1 or 0..255")
    if image.dtype.kind != "f":
        return 0, 255
    if 1 < high < 2:
        raise UserError(f"{what} and its largest value is {high:g}; clip it to 0..1, or give values in 0..255")
    return 0, 1 if high <= 1 else 255
