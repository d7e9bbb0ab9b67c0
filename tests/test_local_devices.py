"""Which GPUs a process takes under Slurm, Open MPI, GKE, and by itself."""

import argparse

import jax
import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.local_devices import local_device_ids
from dinov3seg_jax.processes import joined

SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}
ONE_A_NODE = {"SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
TWO_ON_THE_THIRD = {"SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2),2"}
MPI = {"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
EIGHT = "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_ID": "1"}, None),  # GKE, whose TPUs JAX never restricts
        (SLURM | ONE_A_NODE, []),
        (SLURM | ONE_A_NODE | {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": EIGHT}, []),
        (SLURM | TWO_ON_THE_THIRD | {"SLURM_GPUS_ON_NODE": "8"}, [4, 5, 6, 7]),
        (SLURM | TWO_ON_THE_THIRD | {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": EIGHT}, [4, 5, 6, 7]),
        (SLURM | TWO_ON_THE_THIRD | {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}, []),
        (SLURM | TWO_ON_THE_THIRD | {"SLURM_GPUS_ON_NODE": "3"}, None),
        (SLURM | TWO_ON_THE_THIRD, None),
        (SLURM | ONE_A_NODE | {"SLURM_STEP_TASKS_PER_NODE": "1(x"}, None),
        (SLURM | ONE_A_NODE | {"SLURM_NODEID": "9"}, None),
        (SLURM | ONE_A_NODE | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
        ({"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_TASKS_PER_NODE": "1"}, []),
        (MPI | {"CUDA_VISIBLE_DEVICES": EIGHT}, [6, 7]),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        (MPI, None),
    ],
)
def test_the_processes_of_a_host_share_its_gpus(environment, expected):
    assert local_device_ids(environment) == expected


@pytest.mark.parametrize(("variables", "expected"), [(SLURM | ONE_A_NODE, []), ({}, None)])
def test_what_jax_is_told(monkeypatch, variables, expected):
    told = {}

    def initialize(coordinator, processes, process, devices, **_):
        told["arguments"] = coordinator, processes, process, devices
        raise RuntimeError("enough")

    for name in (*SLURM, *ONE_A_NODE, *MPI, "SLURM_TASKS_PER_NODE", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    options = argparse.Namespace(distributed=True, coordinator=None, processes=None, process=None)
    with pytest.raises(UserError, match="enough"), joined(options):
        pytest.fail("the processes were not joined")
    assert told["arguments"] == (None, None, None, expected)
