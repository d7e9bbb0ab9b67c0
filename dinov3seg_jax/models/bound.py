"""A model for inference, bound to its parameters.

Apart from `graph`, whose import brings Flax: who finds a traced program on disk never describes a model.
"""

from typing import Any

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.models.parameters import Parameters


def bind_frozen(config: ModelConfig, parameters: Parameters) -> Any:
    """The model for inference, described when it is asked for: who finds a traced program on disk never does."""
    from dinov3seg_jax.models.graph import ALL_FROZEN, bind, build  # here, because importing Flax takes a while

    return bind(build(config, ALL_FROZEN)[0], parameters)
