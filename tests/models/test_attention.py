"""The form of attention that is quick on a CPU computes what the plain one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.models import layers
from dinov3seg_jax.models.layers import LONG, attend


def drawn(dtype=jnp.float32, tokens=LONG + 3):
    """Query, key and value [b, n, heads, d]; some scores are large."""
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(key, (2, tokens, 3, 8), dtype) for key in keys)
    return query * 20, key, value


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_long_sequences(dtype, tolerance):
    arrays = drawn(dtype)
    found = jax.jit(attend)(*arrays)
    assert found.dtype == dtype
    expected = jax.nn.dot_product_attention(*arrays)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=tolerance)


def test_gradients_of_long_sequences():
    def total(attention, arrays):
        return (attention(*arrays) ** 2).sum()

    arrays = drawn()
    found, expected = (
        jax.jit(jax.grad(lambda arrays, attention=attention: total(attention, arrays)))(arrays)
        for attention in (attend, jax.nn.dot_product_attention)
    )
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-4 * float(jnp.abs(plain).max()))


@pytest.mark.parametrize(("tokens", "by_head"), [(LONG - 1, False), (LONG, jax.default_backend() == "cpu")])
def test_only_long_sequences_on_a_cpu_go_head_by_head(monkeypatch, tokens, by_head):
    monkeypatch.setattr(layers, "_attend_by_head", lambda query, key, value: jnp.zeros_like(value))
    assert (not attend(*drawn(tokens=tokens)).any()) == by_head
