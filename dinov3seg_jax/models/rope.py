"""Rotary position tables of DINOv3 (its specification, section 4)."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def rope_periods(head_dim: int, base: float) -> Float[np.ndarray, " n"]:
    """The head_dim / 4 periods base^(j / n), j = 0..n-1, float32. Released files hold bf16-rounded ones instead."""
    count = head_dim // 4
    return (base ** (np.arange(count) / count)).astype(np.float32)


def patch_centres(
    height: int, width: int, normalize: Literal["separate", "max", "min"] = "separate"
) -> Float[np.ndarray, "hw 2"]:
    """(row, column) of each patch's centre, row-major, float32.

    Args:
        height, width: of the grid, in patches.
        normalize: "separate" maps each axis to (-1, 1) by itself; "max" and "min" divide both by one extent.
    """
    extents = {
        "separate": (height, width),
        "max": (max(height, width),) * 2,
        "min": (min(height, width),) * 2,
    }[normalize]
    rows = 2 * (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(extents[0]) - 1
    columns = 2 * (np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(extents[1]) - 1
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def rope_tables(
    periods: Float[Array, " n"], centres: Float[np.ndarray, "hw 2"]
) -> tuple[Float[Array, "hw d"], Float[Array, "hw d"]]:
    """Sine and cosine, float32 whatever the model computes in.

    Args:
        periods: [head_dim / 4].
        centres: from `patch_centres`.
    """
    angles = 2 * np.pi * centres[:, :, None] / periods.astype(jnp.float32)
    per_channel = jnp.tile(angles.reshape(len(centres), -1), 2)
    return jnp.sin(per_channel), jnp.cos(per_channel)


def rotate_half(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """(-x2, x1) for the two halves x1, x2 of the last axis."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def rotate_patches(
    x: Float[Array, "b n heads d"], sin: Float[Array, "hw d"], cos: Float[Array, "hw d"]
) -> Float[Array, "b n heads d"]:
    """Rotate the last hw tokens; the tokens before them (CLS, storage) have no position."""
    prefix = x.shape[1] - sin.shape[0]
    patches = x[:, prefix:].astype(jnp.float32)
    rotated = patches * cos[:, None] + rotate_half(patches) * sin[:, None]
    return jnp.concatenate([x[:, :prefix], rotated.astype(x.dtype)], axis=1)
