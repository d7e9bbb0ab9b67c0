"""Open-vocabulary segmentation with DINOv3 (dinov3.seg) in JAX and Flax: the public API on one page.

import dinov3seg_jax

model = dinov3seg_jax.load("runs/quickstart")
result = model.segment("scene.png", ["red circle", "grass"])
result.save("predictions", "scene")

- `load` reads a model: a `Segmenter`, whose `segment` returns a `Segmentation`.
- `segment_file` labels pictures larger than memory, tile by tile.
- `keep_programs` keeps compiled programs on disk, so that later processes start fast. Call it first.
- `load_exported` opens what `dinov3seg export` wrote.
- `load_config` reads a recipe into a `Config`; `train` and `evaluate` take one, as the commands do.
- `ClassList` is a list of class names with synonyms, a background and a threshold; `NamedClass` is one of its classes.
- `UserError` is raised for what a user can mend; its message is one sentence.
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
    from dinov3seg_jax.evaluation.validation import train
    from dinov3seg_jax.export.scorer import load as load_exported
    from dinov3seg_jax.inference.base import BaseSegmenter as Segmenter
    from dinov3seg_jax.inference.load import load
    from dinov3seg_jax.inference.result import Segmentation
    from dinov3seg_jax.pictures.huge import segment_file
    from dinov3seg_jax.text.class_lists import ClassList, NamedClass

    __version__: str

_HOMES = {
    "ClassList": "text.class_lists",
    "Config": "config",
    "NamedClass": "text.class_lists",
    "Segmentation": "inference.result",
    "Segmenter": "inference.base:BaseSegmenter",
    "UserError": "errors",
    "evaluate": "evaluation.evaluate",
    "keep_programs": "cache.programs",
    "load": "inference.load",
    "load_config": "config_files",
    "load_exported": "export.scorer:load",
    "segment_file": "pictures.huge",
    "train": "evaluation.validation",
}

__all__ = [
    "ClassList",
    "Config",
    "NamedClass",
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
