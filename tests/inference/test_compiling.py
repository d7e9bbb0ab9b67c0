"""Programs that segment take no more memory than they need."""

import jax
import jax.numpy as jnp
import pytest

from dinov3seg_jax.inference.device.jit import jit


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA orders operations otherwise on a CPU alone")
def test_branches_run_one_after_the_other_on_a_cpu():
    maps, kernels = jax.ShapeDtypeStruct((512, 64), jnp.float32), jax.ShapeDtypeStruct((8, 64, 64), jnp.float32)

    def eight_branches(maps, kernels):
        return sum((jnp.sin(maps @ kernel) @ kernel).sum(axis=0) for kernel in kernels)

    ours, plain = (
        compile_it(eight_branches).lower(maps, kernels).compile().memory_analysis().temp_size_in_bytes
        for compile_it in (jit, jax.jit)
    )
    assert ours < plain / 2


def test_options_of_jax_jit():
    @jit
    def twice(x):
        return 2 * x

    power = jit(lambda x, n: x**n, static_argnames="n")
    assert (twice(3), power(3, n=2)) == (6, 9)
