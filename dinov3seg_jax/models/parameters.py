"""Parameters as a flat dict of arrays: "vision/backbone/norm/scale" -> array.

Everything outside `models/` sees them in this form, on disk too, so that no format depends on the module API.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

Parameters = dict[str, Array]
AbstractParameters = dict[str, jax.ShapeDtypeStruct]


def parameter_bytes(parameters: Parameters | AbstractParameters) -> int:
    """Size in memory of arrays or of their descriptions."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in parameters.values())
