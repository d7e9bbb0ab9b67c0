"""Image-text correlation (§3): cosines of the refined features with both halves of the text embedding."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.models.functions import convolve, l2_normalize, resize_linear
from dinov3seg_jax.models.layers import Conv

CorrelationKind = Literal["local+global", "local", "global"]

SIDE = 7  # of the kernel that embeds a correlation


def channels_of(kind: CorrelationKind, halves: int) -> tuple[int, ...]:
    """Which halves of a text embedding give a channel each, in the order of the channels; one half gives one."""
    return {"local+global": (1, 0), "local": (1,), "global": (0,)}[kind] if halves == 2 else (0,)


def correlate(
    features: Float[Array, "b h w d"],
    text: Float[Array, "b t d2"],
    kind: CorrelationKind = "local+global",
    halves: int = 2,
) -> Float[Array, "b t h w c"]:
    """Cosine of every patch with every class, one channel per text half in use, float32 in [-1, 1].

    Args:
        features: in the text-aligned space.
        text: [b, t, 2d]; the first half is aligned with CLS (global), the second with patches (local). Or [b, t, d].
        kind: which of two halves; "local+global" gives the channels (local, global).
        halves: of the text.
    """
    parts = jnp.split(text, halves, axis=-1)
    stacked = l2_normalize(jnp.stack([parts[half] for half in channels_of(kind, halves)], axis=-2))
    features = l2_normalize(features)
    return jnp.einsum("bhwd,btcd->bthwc", features, jnp.broadcast_to(stacked, (len(features), *stacked.shape[1:])))


class CorrelationEmbedding(nnx.Module):
    """A 7 x 7 convolution over each class's own map."""

    def __init__(self, channels: int, dim: int, *, dtype: DTypeLike, stream: DTypeLike | None = None, rngs: nnx.Rngs):
        """`stream` is the type of the maps that it begins; default `dtype`."""
        self.conv = Conv(channels, dim, SIDE, dtype=dtype, rngs=rngs)
        self.dtype, self.stream = dtype, stream or dtype

    def __call__(self, correlation: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        b, t, h, w, c = correlation.shape
        maps = correlation.reshape(b * t, h, w, c).astype(self.dtype)
        # Columns as channels: with two channels alone, a TPU's compiler takes minutes and its matrix unit idles.
        reach = SIDE // 2
        wide = jnp.pad(maps, ((0, 0), (0, 0), (reach, reach), (0, 0)))
        columns = jnp.concatenate([wide[:, :, place : place + w] for place in range(SIDE)], axis=-1)
        kernel = self.conv.kernel[...].reshape(SIDE, 1, SIDE * c, -1)
        bias = self.conv.bias
        assert bias is not None
        embedded = convolve(columns, kernel, ((reach, reach), (0, 0)), self.dtype)
        return (embedded + bias[...].astype(self.dtype)).reshape(b, t, h, w, -1).astype(self.stream)


class CorrelationSkip(nnx.Module):
    """A logit read off the correlation itself, for the decoder to correct [ours].

    The decoder's group norms hide how high a class's map is; without this shortcut it takes long to learn from nothing.
    """

    def __init__(self) -> None:
        self.log_gain = nnx.Param(np.full((), np.log(15), np.float32))
        self.threshold = nnx.Param(np.full((), 0.65, np.float32))

    def __call__(self, correlation: Float[Array, "b t h w c"], height: int, width: int) -> Float[Array, "b t h2 w2"]:
        """exp(log_gain) * (mean cosine - threshold), resized bilinearly."""
        mean = jnp.moveaxis(correlation.mean(axis=-1), 1, -1)
        cosine = jnp.moveaxis(resize_linear(mean, height, width), -1, 1)
        return jnp.exp(self.log_gain[...]) * (cosine - self.threshold[...])
