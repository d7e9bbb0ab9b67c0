"""A digest depends on every bit and its place; test_checkpoint.py sees that it is the same on any devices."""

import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.training.digests import digests

VALUES = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)


def digest(values):
    return digests({"one": jnp.asarray(values)})["one"]


def swapped(values):
    values = values.copy()
    values[[0, 1]] = values[[1, 0]]
    return values


def with_other_signs(values):
    values = values.copy()
    values[2:4, 5] *= -1
    return values


def with_its_last_bit_flipped(values):
    bits = values.view(np.uint32).copy()
    bits[5, 9] ^= 1
    return bits.view(np.float32)


def test_the_same_content_has_the_same_digest():
    assert digest(VALUES) == digest(VALUES.copy())
    assert len(digest(VALUES)) == 16


@pytest.mark.parametrize("change", [swapped, with_other_signs, with_its_last_bit_flipped, np.negative])
def test_other_content_has_another(change):
    assert digest(change(VALUES)) != digest(VALUES)
    assert digest(change(VALUES).astype(jnp.bfloat16)) != digest(VALUES)


def test_halves_of_the_memory_too():
    halved = jnp.asarray(VALUES, jnp.bfloat16)
    assert digest(halved) == digest(halved.astype(jnp.float32).astype(jnp.bfloat16))
    assert digest(halved) != digest(halved.at[3, 3].set(0))


def test_numbers_without_a_shape_and_nothing_at_all():
    assert digest(np.float32(3)) != digest(np.float32(4))
    assert digest(np.zeros((0, 3), np.float32)) == "0" * 16
