"""A step compiled ahead of time: once in a run, and never in silence a second time."""

from typing import Any

import jax.numpy as jnp

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.training.step import Batch


class CompiledStep:
    """A jitted step for batches of one shape."""

    def __init__(self, step: Any, *arguments: Any):
        """Trace and compile `step` for (state, frozen, names, batch): arrays, or their descriptions with shardings."""
        traced = step.trace(*arguments)
        self.traced = traced.jaxpr
        self._batch = _shapes(arguments[-1])
        self._step = traced.lower().compile()

    def __call__(self, state: Any, frozen: Any, names: Any, batch: Batch) -> Any:
        """Run it.

        Raises:
            UserError: the batch is of other shapes; to compile again would take minutes that nobody sees.
        """
        if (shapes := _shapes(batch)) != self._batch:
            raise UserError(
                f"the step was compiled for batches of {self._batch} and met one of {shapes}; a run compiles once: "
                "make every batch alike (train.batch_size, data.crop_size, data.classes_per_image)."
            )
        return self._step(state, frozen, names, batch)


def _shapes(batch: Batch) -> str:
    """As in "image uint8[4,384,384,3], label int32[4,384,384], class_ids int32[4,171]"."""
    return ", ".join(
        f"{name} {jnp.dtype(array.dtype).name}[{','.join(map(str, array.shape))}]"
        for name, array in zip(Batch._fields, batch, strict=True)
    )
