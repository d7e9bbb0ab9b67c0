"""Parameters as a flat dict of arrays: "vision/backbone/norm/scale" -> array.

Everything outside `models/` sees them in this form, on disk too, so that no format depends on the module API.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dinov3seg_jax.config import ModelConfig

Parameters = dict[str, Array]
AbstractParameters = dict[str, jax.ShapeDtypeStruct]


def bind_frozen(config: ModelConfig, parameters: Parameters) -> Any:
    """The model for inference, described when it is asked for: who finds a traced program on disk never does."""
    from dinov3seg_jax.models.graph import ALL_FROZEN, bind, build  # here, because importing Flax takes a while

    return bind(build(config, ALL_FROZEN)[0], parameters)


def parameter_bytes(parameters: Parameters | AbstractParameters) -> int:
    """Size in memory of arrays or of their descriptions."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in parameters.values())
