"""What a large answer took is free again, also for other processes."""

import threading

import numpy as np
import psutil
import pytest

from dinov3seg_jax.app.memory import give_back

SMALL, COUNT = 30_000, 4_000  # bytes: what glibc takes from its own store and not from the system, and how many


def touched() -> None:
    blocks = [np.ones(SMALL, np.uint8) for _ in range(COUNT)]
    kept.append(np.ones(SMALL, np.uint8))  # above them, so that they are not given back by themselves
    del blocks


kept: list[np.ndarray] = []


@pytest.mark.skipif(not psutil.LINUX, reason="glibc is Linux'")
def test_memory_goes_back():
    worker = threading.Thread(target=touched)
    worker.start()
    worker.join()
    full = psutil.Process().memory_info().rss
    give_back()
    assert full - psutil.Process().memory_info().rss > 0.8 * SMALL * COUNT
