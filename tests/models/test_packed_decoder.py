"""The packed decoder computes what the plain one does: values, and gradients of all that it gets."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3seg_jax.config import DecoderConfig
from dinov3seg_jax.models.decoder import Decoder
from dinov3seg_jax.models.packing import pack, unpack

RNG = np.random.default_rng(0)
B, T, H, W, INPUTS = 2, 3, 3, 5, 24
PLAIN = DecoderConfig(dims=(32, 16), guidance_dims=(8, 4))  # two groups of the first norms, one of the second


def decoders(config, *, guided, dtype):
    """Both forms as functions of parameters, maps and guidance, and parameters away from where they start."""
    forms = [
        nnx.split(Decoder(INPUTS, one, guided=guided, dtype=dtype, rngs=nnx.Rngs(0)))
        for one in (config, dataclasses.replace(config, packed=True))
    ]
    parameters = jax.tree.map(lambda x: x + 0.1 * RNG.standard_normal(x.shape).astype(np.float32), forms[0][1])
    return parameters, [lambda p, *given, graph=graph: nnx.merge(graph, p)(*given) for graph, _ in forms]


def inputs(guided):
    maps = RNG.standard_normal((B, T, H, W, INPUTS))
    guidance = tuple(RNG.standard_normal((B, n * H, n * W, g)) for n, g in zip((2, 4), (8, 4), strict=True))
    return jax.tree.map(jnp.float32, (maps, guidance if guided else None))


@pytest.mark.parametrize(
    ("guided", "remat"),
    [(True, False), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((False, False), (True, True)))],
)
def test_values_and_gradients_are_those_of_the_plain_form(guided, remat):
    config = dataclasses.replace(PLAIN, remat=remat)
    parameters, forms = decoders(config, guided=guided, dtype=jnp.float32)
    given, weights = inputs(guided), RNG.standard_normal((B, T, 4 * H, 4 * W)).astype(np.float32)

    def both(form):
        def total(parameters, given):
            out = form(parameters, *given)
            return (out * weights).sum(), out

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(parameters, given)

    plain, packed = map(both, forms)
    for expected, found in zip(jax.tree.leaves(plain), jax.tree.leaves(packed), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_bfloat16_loses_no_more_than_the_plain_form_does():
    exact_parameters, (exact, _) = decoders(PLAIN, guided=True, dtype=jnp.float32)
    _, forms = decoders(PLAIN, guided=True, dtype=jnp.bfloat16)
    given = inputs(guided=True)
    expected = jax.jit(exact)(exact_parameters, *given)
    plain, packed = (np.abs(jax.jit(form)(exact_parameters, *given) - expected).mean() for form in forms)
    assert 0 < packed < 1.5 * plain


def test_packing_puts_four_cells_side_by_side_and_unpacking_back():
    x = np.arange(1 * 4 * 6 * 2).reshape(1, 4, 6, 2)
    packed = pack(x)
    chex.assert_shape(packed, (1, 2, 3, 8))
    assert packed[0, 1, 2].tolist() == x[0, 2:4, 4:6].ravel().tolist()
    np.testing.assert_array_equal(unpack(packed), x)
