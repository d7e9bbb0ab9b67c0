"""Where there are fewer pictures than devices, these share the class lists out and find what one device does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dinov3seg_jax.inference.classes.chunks import deal
from dinov3seg_jax.inference.device.sharing import copies_of
from dinov3seg_jax.inference.views.labels import Found, best_of
from tests.closeness import SCORES


@pytest.mark.parametrize(
    ("pictures", "devices", "copies"),
    [(1, 1, 1), (1, 4, 4), (2, 4, 2), (3, 4, 1), (4, 4, 1), (9, 4, 1), (3, 8, 2), (2, 6, 3), (4, 6, 1)],
)
def test_devices_with_a_picture_of_their_own_share_no_list(pictures, devices, copies):
    assert copies_of(pictures, devices) == copies


def test_chunks_are_dealt_in_turn_and_filled_up_with_the_last_class():
    lists, real = deal(np.tile(np.arange(7) + 10, (4, 1)), 2, 2)
    np.testing.assert_array_equal(lists[0], [10, 11, 14, 15])
    np.testing.assert_array_equal(lists[1], [12, 13, 16, 16])
    np.testing.assert_array_equal(real[:2], [[1, 1, 1, 1], [1, 1, 1, 0]])
    np.testing.assert_array_equal(lists[2:], lists[:2])


def test_of_several_bests_the_higher_score_counts_then_the_lower_index():
    first = Found(np.array([[3, 3, 3]]), np.float32([[0.5, 0.5, 0.5]]), np.float32([[[0.1]], [[0]]]))
    second = Found(np.array([[4, 2, 4]]), np.float32([[0.6, 0.5, 0.5]]), np.float32([[[0]], [[0.2]]]))
    for order in ((first, second), (second, first)):
        found = best_of(order)
        np.testing.assert_array_equal(found.labels, [[4, 2, 3]])
        np.testing.assert_array_equal(found.confidence, np.float32([[0.6, 0.5, 0.5]]))
        np.testing.assert_array_equal(found.scores, np.float32([[[0.1]], [[0.2]]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "of_a_device", "chunks"),
    [
        ("plain", [1, 2], 3),  # 12 chunks of 23 classes over four devices
        ("two pictures, most classes rejected", [1, 2], 2),  # 4 chunks over two
        ("learned entries, blended windows", [4, 2], 6),  # of four windows and of one whole
    ],
)
def test_four_devices_find_what_one_does(case, of_a_device, chunks):
    environment = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",  # as in `tests/training/test_several_devices.py`
        "NPROC": "16",
    }
    command = [sys.executable, "-m", "tests.inference.shared_lists", case]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (found,) = (json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{"))
    assert found["labels"]
    assert found["labels found"] > 5
    assert max(found["confidence"], found["scores"]) < SCORES
    assert (found["of a device"], found["chunks"]) == (of_a_device, chunks)
