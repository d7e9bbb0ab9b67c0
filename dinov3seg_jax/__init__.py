"""Open-vocabulary segmentation with DINOv3 (dinov3.seg) in JAX and Flax: the public API on one page.

import dinov3seg_jax

model = dinov3seg_jax.load("runs/quickstart")
result = model.segment("scene.png", ["red circle", "grass"])
result.save("predictions", "scene")

`load` reads a model; what it returns is a `Segmenter`, and what that returns are `Segmentation`s. `segment_file`
works through pictures larger than memory; `keep_programs` lets later processes start fast; `load_exported` opens what
`dinov3seg export` wrote. `load_config`, `train` and `evaluate` are the commands of these names, for programs. What a
user can mend is a `UserError`.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinov3seg_jax.cache.programs import keep_programs
    from dinov3seg_jax.config import Config
    from dinov3seg_jax.config_files import load_config
    from dinov3seg_jax.errors import UserError
    from dinov3seg_jax.evaluation.evaluate import evaluate
    from dinov3seg_jax.export.scorer import load as load_exported
    from dinov3seg_jax.inference.base import BaseSegmenter as Segmenter
    from dinov3seg_jax.inference.load import load
    from dinov3seg_jax.inference.result import Segmentation
    from dinov3seg_jax.pictures.huge import segment_file
    from dinov3seg_jax.training.loop import train

    __version__: str

_HOMES = {
    "Config": "config",
    "Segmentation": "inference.result",
    "Segmenter": "inference.base:BaseSegmenter",
    "UserError": "errors",
    "evaluate": "evaluation.evaluate",
    "keep_programs": "cache.programs",
    "load": "inference.load",
    "load_config": "config_files",
    "load_exported": "export.scorer:load",
    "segment_file": "pictures.huge",
    "train": "training.loop",
}

__all__ = [
    "Config",
    "Segmentation",
    "Segmenter",
    "UserError",
    "__version__",
    "evaluate",
    "keep_programs",
    "load",
    "load_config",
    "load_exported",
    "segment_file",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use: most modules need no JAX, which takes seconds to start."""
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in _HOMES:
        home, _, own_name = _HOMES[name].partition(":")
        return getattr(importlib.import_module(f"{__name__}.{home}"), own_name or name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
