"""Files of other projects' public code, loaded by themselves: their packages need more than is timed."""

import importlib.util
from pathlib import Path
from typing import Any


def load_module(path: Path) -> Any:
    """A module of CAT-Seg's checkout."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"error: {path} is missing; --catseg names the folder that holds cat_seg/")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
