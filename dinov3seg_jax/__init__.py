"""Open-vocabulary semantic segmentation with DINOv3 (dinov3.seg) in JAX and Flax.

import dinov3seg_jax

model = dinov3seg_jax.load("runs/quickstart")
result = model.segment("scene.png", ["red circle", "grass"])
result.save("predictions", "scene")
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinov3seg_jax.inference.result import Segmentation
    from dinov3seg_jax.inference.segmenter import Segmenter, load

    __version__: str

__all__ = ["Segmentation", "Segmenter", "__version__", "load"]

_HOMES = {
    "Segmentation": "dinov3seg_jax.inference.result",
    "Segmenter": "dinov3seg_jax.inference.segmenter",
    "load": "dinov3seg_jax.inference.segmenter",
}


def __getattr__(name: str) -> Any:
    """Import on first use: most modules need no JAX, which takes seconds to start."""
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
