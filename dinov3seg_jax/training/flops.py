"""Floating-point operations of a traced function, counted from its jaxpr.

XLA's own analysis counts the body of a scan once, however often it runs; this count multiplies.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from dinov3seg_jax.config import ModelConfig


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of the matrix products and convolutions in `function(*arguments)`; two for each multiply-add.

    Everything else (norms, activations, softmax) is left out: it is bound by memory, not by arithmetic.
    """
    return count_traced(jax.make_jaxpr(function)(*arguments))


def count_traced(traced: core.ClosedJaxpr) -> int:
    """The same of what is traced already."""
    return _count(traced.jaxpr)


def as_counted(model: ModelConfig) -> ModelConfig:
    """The same model, nothing recomputed, packed or fused: its operations are the model's, whatever really runs."""
    return dataclasses.replace(
        model,
        remat=False,
        early=dataclasses.replace(model.early, remat=False),
        late=dataclasses.replace(model.late, remat=False, kernel="xla", class_kernel="xla"),
        decoder=dataclasses.replace(model.decoder, remat=False, packed=False),
        attention="portable" if jax.default_backend() == "gpu" else "auto",  # a kernel's products are not seen
    )


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        inputs = _shape(equation.invars[0])
        return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(inputs[axis] for axis in contracted)
    if name == "conv_general_dilated":
        layout = equation.params["dimension_numbers"].rhs_spec
        kernel = _shape(equation.invars[1])
        taps = math.prod(kernel[axis] for axis in layout[1:])
        # Dilated inputs (the gradient of a strided convolution) are mostly zeros, which no backend multiplies.
        dilation = math.prod(equation.params["lhs_dilation"])
        return 2 * math.prod(_shape(equation.outvars[0])) * taps // dilation
    inner = [_count(body) for body in _bodies(equation)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * _times(equation)


def _times(equation: core.JaxprEqn) -> int:
    """How often the body of an equation runs, on all devices together."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    if equation.primitive.name == "shard_map":  # its body is what one device does
        return equation.params["mesh"].size
    return 1


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _bodies(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
