"""How programs that segment are compiled."""

from collections.abc import Callable
from typing import Any

import jax

LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit`, on a CPU with operations in the order that takes the least memory.

    By itself XLA orders them there so that many can run at the same time, which these, each busy on all cores, gain
    nothing from: the encoders and the early refinement at full size would take twice the memory.
    """
    return jax.jit(function, compiler_options=LEAST_MEMORY if jax.default_backend() == "cpu" else None, **options)
