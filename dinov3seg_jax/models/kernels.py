"""Which attention kernels there are on a device; `attention.attend` says what each is."""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dinov3seg_jax.errors import note, reason
from dinov3seg_jax.models.mesh import EXAMPLES

LONG = 256  # tokens; shorter sequences have few scores, which a kernel does not have to keep out of memory

Kernel = Literal["auto", "xla", "cudnn", "splash", "portable"]


def on_tpu() -> bool:
    """Whether what is being traced will run on TPUs: those of the mesh in view, which need not be there."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind.startswith("TPU") if device else jax.default_backend() == "tpu"


def has_kernel(kernel: Kernel, dtype: DTypeLike) -> bool:
    """Whether `attend` has that kernel here, for queries of that type."""
    if kernel == "cudnn":
        return jax.default_backend() == "gpu" and dtype == jnp.bfloat16
    return kernel != "splash" or on_tpu()


def suits_cudnn(platform: str, capability: str, dtype: DTypeLike, head_dim: int, tokens: int) -> bool:
    """Whether "auto" is cuDNN's flash attention: where it has a forward and a backward pass, and much to save.

    Args:
        platform: JAX's name of the backend.
        capability: CUDA's of the device, as in "8.6"; "" elsewhere.
        dtype: of queries.
        head_dim: channels of a head. Some GPUs take 256 forwards, but none of them backwards.
        tokens: of the keys.
    """
    generation = capability.partition(".")[0]
    return (
        platform == "gpu"
        and generation.isdecimal()
        and int(generation) >= 8  # Ampere
        and dtype in (jnp.bfloat16, jnp.float16)
        and head_dim <= 128
        and head_dim % 8 == 0
        and tokens >= LONG
    )


def takes_cudnn(dtype: DTypeLike, head_dim: int, tokens: int) -> bool:
    """`suits_cudnn` of this machine and the mesh in view, if cuDNN is there and works."""
    device, mesh = jax.local_devices()[0], jax.sharding.get_abstract_mesh()
    capability = str(getattr(device, "compute_capability", ""))
    if not suits_cudnn(jax.default_backend(), capability, dtype, head_dim, tokens):
        return False
    shares_examples_alone = all(size == 1 for axis, size in mesh.shape.items() if axis not in EXAMPLES)
    return shares_examples_alone and cudnn_works()


def cudnn_attention(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b m heads d"],
    value: Float[Array, "b m heads d"],
    *,
    causal: bool = False,
) -> Float[Array, "b n heads d"]:
    """cuDNN's flash attention.

    JAX refuses gradients where a number of tokens is odd, as that of patches with one CLS token and four registers is.
    So there is one token more then, which nothing sees.
    """
    (b, n), m = query.shape[:2], key.shape[1]
    if n % 2 == 0 == m % 2:
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")
    query, key, value = (
        jnp.pad(part, ((0, 0), (0, part.shape[1] % 2), (0, 0), (0, 0))) for part in (query, key, value)
    )
    attended = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        query_seq_lengths=jnp.full(b, n, jnp.int32),
        key_value_seq_lengths=jnp.full(b, m, jnp.int32),
        implementation="cudnn",
    )
    return attended[:, :n]


@functools.cache
def cudnn_works() -> bool:
    """Try cuDNN's attention once, forwards and backwards; if it fails, say so."""

    def attend(x: jax.Array) -> jax.Array:
        return cudnn_attention(x, x, x).astype(jnp.float32).sum()

    def try_it() -> None:
        jax.block_until_ready(jax.jit(jax.grad(attend))(jnp.zeros((1, LONG + 1, 1, 64), jnp.bfloat16)))

    try:
        with ThreadPoolExecutor(1) as another:  # whose thread is in the middle of no trace
            another.submit(try_it).result()
    except Exception as error:  # of JAX, of XLA, or of a library that is missing
        note(f"cuDNN's attention does not work here ({reason(error)[:200]}), so plain attention takes its place")
        return False
    return True
