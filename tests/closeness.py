"""How far float results may be apart, in units of what they are computed with."""

import jax.numpy as jnp
import numpy as np

# Of probabilities that two programs compute of the same picture. The logits of the small models reach some tens; their
# float32 sums lose about a millionth of that in one order or another, and the sigmoid hands on a quarter.
SCORES = 5e-5


def assert_same_labels(found, expected, scores, err_msg=""):
    """Assert that labels agree wherever the best class is decided: two programs may each round a tie in their own way.

    Args:
        found, expected: labels of one picture, [h, w].
        scores: of all classes, [t, h, w], in [0, 1]. A pixel is decided if the best is more than twice `SCORES` above
            the next, and nine pixels in ten must be.
    """
    next_best, best = np.sort(scores, axis=0)[-2:]
    decided = best - next_best > 2 * SCORES
    assert decided.mean() > 0.9, f"{err_msg}: only {decided.mean():.1%} of the pixels are decided"
    np.testing.assert_array_equal(found[decided], expected[decided], err_msg=err_msg)


def assert_close(actual, expected, ulps, err_msg=""):
    """Assert that no error exceeds `ulps` times the last place, in the type of `actual`, of the largest `expected`."""
    expected = np.asarray(expected, np.float64)
    allowed = ulps * float(jnp.finfo(actual.dtype).eps) * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=allowed, err_msg=err_msg)
