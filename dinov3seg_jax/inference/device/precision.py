"""Inference in fewer bits: `inference.dtype` is that of the arithmetic, `inference.weights` how matrices are held."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from dinov3seg_jax.config import Config, ModelConfig
from dinov3seg_jax.models.kernels import has_kernel
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.models.quantized import SCALE

Weights = Literal["float32", "bfloat16", "int8"]

KERNEL, TABLE = "/kernel", "/token_embedding"
LARGEST = 127  # of int8, on both sides of 0


def at_precision(config: Config, parameters: Parameters) -> tuple[Config, Parameters]:
    """Config and parameters as `config.inference` asks for; the model's own dtype becomes that of the arithmetic."""
    dtype, weights = config.inference.dtype, config.inference.weights
    model = config.model if dtype == "model" else dataclasses.replace(config.model, dtype=dtype)
    return dataclasses.replace(config, model=runnable(model)), narrow(parameters, weights)


def runnable(model: ModelConfig) -> ModelConfig:
    """The model with an attention that there is on this device, in place of one that it was trained with elsewhere."""
    return model if has_kernel(model.attention, model.dtype) else dataclasses.replace(model, attention="auto")


def narrow(parameters: Parameters, weights: Weights) -> Parameters:
    """Hold kernels and the token table in fewer bits; what is small (norms, biases, positions) stays float32.

    Args:
        parameters: floats of any type.
        weights: "float32" changes nothing; with "int8" an array is joined by another, its name and `SCALE`, of the
            float32 scales, and `models.graph.bind` puts the two together, inside the compiled programs.
    """
    if weights == "float32":
        return parameters
    narrowed: Parameters = {}
    for name, value in parameters.items():
        if not name.endswith((KERNEL, TABLE)):
            narrowed[name] = value
        elif weights == "bfloat16":
            narrowed[name] = jnp.asarray(value, jnp.bfloat16)
        else:
            values, scale = quantize(np.asarray(value, np.float32), axis=-1 if name.endswith(TABLE) else -2)
            narrowed |= {name: jnp.asarray(values), name + SCALE: jnp.asarray(scale)}
    return narrowed


def quantize(
    array: Float[np.ndarray | Array, "*n"], axis: int = -2
) -> tuple[Int8[np.ndarray, "*n"], Float[np.ndarray, "*m"]]:
    """Symmetric int8: `values * scale` is at most half a scale away from the array.

    Args:
        array: of float32.
        axis: what shares a scale. -2 is the inputs of a kernel, so that every output channel has its own, in every
            layer of a stack and at every tap of a convolution.

    Returns:
        Values in -127..127, and their scales, of length 1 along the axis.
    """
    scale = np.abs(array).max(axis=axis, keepdims=True) / np.float32(LARGEST)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    return np.rint(array / scale).astype(np.int8), scale
