"""TPU kernels run in Pallas' interpreter, and what they compute compared with the plain form."""

import jax
import numpy as np

from dinov3seg_jax.models import kernel_parts


def interpret(monkeypatch, module):
    """Run the kernels of a module themselves, wherever the tests run; a list of which of them ran."""
    calls = []

    def counted(kernel):
        def call(*arguments):
            calls.append(kernel.__name__)
            return kernel(*arguments)

        return call

    monkeypatch.setattr(kernel_parts, "INTERPRET", True)
    for kernel in (module.run, module.run_backward):
        monkeypatch.setattr(module, kernel.__name__, counted(kernel))
    return calls


def close(ours, reference, tolerance):
    """Relative to the largest of a leaf; or of all leaves, where one is next to nothing, as a key's bias is."""
    ours, reference = ([np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)] for tree in (ours, reference))
    largest = max(np.abs(leaf).max() for leaf in reference)
    for own, other in zip(ours, reference, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=tolerance * max(np.abs(other).max(), largest / 30))
