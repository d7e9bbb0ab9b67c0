"""One device, eight, and two processes of four train alike, and share the memory out."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

MODULE = "tests.training.several_devices"
PAIRS = tuple(f"{layer}/kernel" for layer in ("/query", "/key", "/value", "attention/out", "/up", "/down"))
CUT = {"parameters", "first moments", "second moments"}  # at least, on every mesh of several devices


def start(devices, **options):
    """A process with so many virtual devices; see `several_devices.main` for its options."""
    environment = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        # So that processes that wait for one another never wait for ever: one program at a time, in the same order
        # everywhere, and a thread for each device however few the cores.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
        "NPROC": "16",
    }
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, json.dumps(options)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(*processes):
    """What the first of them printed for each mesh, once all have ended."""
    with ThreadPoolExecutor() as readers:  # all at once: none waits until another has been read
        outputs = list(readers.map(lambda process: process.communicate(), processes))
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(line) for line in outputs[0][0].splitlines() if line.startswith("{")]


def assert_equal_losses(found, expected):
    assert len(set(expected["losses"])) == len(expected["losses"])  # it trains
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)


def assert_shared_out(found, data, model):
    """Data cuts every array of which an axis divides (depth aside), and model the towers' pairs of dense layers too."""
    for title, cuts in found["cuts"].items():
        for name, shape in found["shapes"].items():
            free = shape[1:] if "blocks/" in name else shape
            expected = data if any(n % data == 0 for n in free) else 1
            if name.endswith(PAIRS) and not name.startswith("late/"):
                expected *= model
            assert cuts[name] == expected, (title, name)


@pytest.mark.slow
def test_eight_devices_train_like_one_and_each_holds_its_share():
    meshes = [(1, 1), (8, 1), (4, 2)]
    one, *both = results(start(8, meshes=meshes, steps=3, objective="alignment", gradients=[1, 2]))
    for mesh, eight in zip(meshes[1:], both, strict=True):
        assert_equal_losses(eight, one)
        assert eight["cuts"].keys() == CUT | {"gradients"}
        assert_shared_out(eight, *mesh)
    assert max(one["cuts"]["parameters"].values()) == 1


@pytest.mark.slow
def test_twenty_steps_of_the_whole_method_are_the_same_on_one_device_and_on_eight():
    """Eight that have an example each, and eight that share the towers and the three classes of every example."""
    meshes = [(1, 1), (8, 1), (1, 8)]
    one, by_data, by_class = results(start(8, meshes=meshes, steps=20, model="whole", gradients=[2]))
    assert by_class["cuts"].keys() == CUT | {"gradients"}
    assert_equal_losses(by_data, one)
    assert_equal_losses(by_class, one)
    assert_shared_out(by_data, 8, 1)
    assert_shared_out(by_class, 1, 8)


@pytest.mark.slow
def test_parameters_are_gathered_inside_a_replica():
    """Names are the text tower's examples, of which both have some; all that is larger stays on four devices."""
    whole, halves = results(start(8, meshes=[(8, 1), (8, 1, 2)], steps=3))
    assert_equal_losses(halves, whole)
    assert_shared_out(halves, 4, 1)

    def largest_across(found):
        return max(size for group, size in found["gathers"] if min(group) < 4 <= max(group))

    of_names = 6 * 8 * 16  # activations: five names and what fills them up, of 8 tokens
    assert largest_across(halves) <= of_names < largest_across(whole)


@pytest.mark.slow
def test_parameters_gathered_once_a_step_train_alike_and_stay_cut():
    """On one replica, on two, and where a model axis cuts some parameters too; the whole method, its text tower too."""
    meshes = [(1, 1), (8, 1), (8, 1, 2), (4, 2)]
    one, *shared = results(start(8, meshes=meshes, steps=5, model="whole", once=True, gradients=[1]))
    (at_each_use,) = results(start(8, meshes=[(8, 1)], steps=5, model="whole"))
    for found, cut in zip(shared, [(8, 1), (4, 1), (4, 2)], strict=True):
        assert_equal_losses(found, one)
        assert_shared_out(found, *cut)
    assert shared[0]["cuts"].keys() == CUT | {"gradients"}
    assert_equal_losses(at_each_use, one)
    assert shared[0]["number of gathers"] < at_each_use["number of gathers"]


@pytest.mark.slow
def test_the_fused_block_trains_on_eight_devices_like_the_steps_on_one():
    one, by_data, by_both = results(start(8, meshes=[(1, 1), (8, 1), (2, 4)], steps=5, model="fused"))
    assert_equal_losses(by_data, one)
    assert_equal_losses(by_both, one)


@pytest.mark.slow
def test_twenty_steps_are_the_same_in_one_process_and_in_two_of_four_devices():
    (one,) = results(start(1, meshes=[(1, 1)], steps=20))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"meshes": [(8, 1), (4, 2)], "steps": 20, "gradients": [1]}
    by_data, by_both = results(*(start(4, processes=(address, 2, process), **shared) for process in range(2)))
    assert_equal_losses(by_data, one)
    assert_equal_losses(by_both, one)
    assert by_both["cuts"].keys() == CUT | {"gradients"}
    assert_shared_out(by_data, 8, 1)
    assert_shared_out(by_both, 4, 2)
