"""Memory of large pictures goes back to the system, which the C library by itself keeps for the next one."""

import contextlib
import ctypes


def give_back() -> None:
    """Give back what is free; only glibc has to be told."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
