"""How far float results may be apart, in units of what they are computed with."""

import jax.numpy as jnp
import numpy as np

# Of probabilities that two programs compute of the same picture. The logits of the small models reach some tens; their
# float32 sums lose about a millionth of that in one order or another, and the sigmoid hands on a quarter.
SCORES = 5e-5


def assert_close(actual, expected, ulps, err_msg=""):
    """Assert that no error exceeds `ulps` times the last place, in the type of `actual`, of the largest `expected`."""
    expected = np.asarray(expected, np.float64)
    allowed = ulps * float(jnp.finfo(actual.dtype).eps) * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=allowed, err_msg=err_msg)
