"""Image-text correlation (§3): cosines of the refined features with both halves of the text embedding."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.models.layers import Conv, l2_normalize

CorrelationKind = Literal["local+global", "local", "global"]


def correlate(
    features: Float[Array, "b h w d"], text: Float[Array, "b t d2"], kind: CorrelationKind = "local+global"
) -> Float[Array, "b t h w c"]:
    """Cosine of every patch with every class, one channel per text half in use, float32 in [-1, 1].

    Args:
        features: in the text-aligned space.
        text: [b, t, 2d]; the first half is aligned with CLS (global), the second with patches (local).
        kind: which halves; "local+global" gives the channels (local, global).
    """
    global_half, local_half = jnp.split(text, 2, axis=-1)
    halves = {"local+global": [local_half, global_half], "local": [local_half], "global": [global_half]}[kind]
    stacked = l2_normalize(jnp.stack(halves, axis=-2))
    features = l2_normalize(features)
    return jnp.einsum("bhwd,btcd->bthwc", features, jnp.broadcast_to(stacked, (len(features), *stacked.shape[1:])))


class CorrelationEmbedding(nnx.Module):
    """A 7 x 7 convolution over each class's own map."""

    def __init__(self, channels: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(channels, dim, 7, dtype=dtype, rngs=rngs)

    def __call__(self, correlation: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        b, t, *grid = correlation.shape
        embedded = self.conv(correlation.reshape(b * t, *grid))
        return embedded.reshape(b, t, *embedded.shape[1:])
