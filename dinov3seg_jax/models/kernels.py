"""Which attention kernels there are on a device; `attention.attend` says what each is."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Kernel = Literal["auto", "xla", "cudnn", "splash"]


def on_tpu() -> bool:
    """Whether what is being traced will run on TPUs: those of the mesh in view, which need not be there."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind.startswith("TPU") if device else jax.default_backend() == "tpu"


def has_kernel(kernel: Kernel, dtype: DTypeLike) -> bool:
    """Whether `attend` has that kernel here, for queries of that type."""
    if kernel == "cudnn":
        return jax.default_backend() == "gpu" and dtype == jnp.bfloat16
    return kernel != "splash" or on_tpu()
