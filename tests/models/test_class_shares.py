"""Devices that share the class list of an example out have the head's values, gradients and loss."""

import json
import os
import subprocess
import sys

import pytest

from tests.models.class_shares import CASES

DIFFERENCE = 5e-6  # float32 sums in another order, on the scale of what is summed


def run(*names):
    environment = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",  # as in `tests/training/test_several_devices.py`
        "NPROC": "16",
    }
    command = [sys.executable, "-m", "tests.models.class_shares", *names]
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_head_is_that_of_one_device(name):
    (found,) = run(name)
    assert max(found["loss"], found["logits"], found["gradients"]) < DIFFERENCE
    assert found["counts"] == 0
    layers = CASES[name][3].get("layers", 1)
    collectives = found["collectives"]
    if "softmax" not in name:
        assert collectives.keys() == {"all-reduce"}, "no device sees the maps of other classes"
    if name == "8 classes, two layers":
        assert collectives["all-reduce"][0] == layers + 1  # the sums of each class block, and the loss
