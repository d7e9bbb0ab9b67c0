"""Libraries that only some formats need."""

import importlib
from typing import Any

from dinov3seg_jax.errors import UserError


def needed(module: str, extra: str, purpose: str) -> Any:
    """The module.

    Args:
        module: as it is imported.
        extra: of this package, which brings it.
        purpose: what asks for it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed; install the extra '{extra}', as in "
            f"pip install 'dinov3seg_jax[{extra}]'"
        ) from error
