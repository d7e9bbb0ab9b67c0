"""Where things are kept that can be computed again."""

import os
from pathlib import Path

from dinov3seg_jax.files import expanded

VARIABLE = "DINOV3SEG_CACHE"
OFF = "off"


def cache_folder() -> Path | None:
    """What `DINOV3SEG_CACHE` names, or the user's folder for caches; None where it says "off"."""
    named = os.environ.get(VARIABLE, "")
    if named:
        return None if named == OFF else expanded(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "dinov3seg_jax"
    except RuntimeError:  # a user without a home
        return None
