"""Which GPUs of its host a process takes, under the launchers that start several processes.

JAX gives every process that Slurm or Open MPI started one GPU, whose number is the process's own on that host. So of
eight GPUs that one process may use it takes one. Here the processes of a host share its GPUs out.
"""

import re
from collections.abc import Mapping

Variables = Mapping[str, str]

BY_USER = "JAX_LOCAL_DEVICE_IDS"  # which JAX reads by itself
ALL: list[int] = []  # for JAX: no restriction


def local_device_ids(environment: Variables) -> list[int] | None:
    """What `jax.distributed.initialize` takes under that name; `ALL` leaves every device, None the choice to JAX.

    Args:
        environment: `os.environ`, as Slurm's `srun`, Open MPI's `mpirun`, GKE or nobody made it.
    """
    if environment.get(BY_USER):
        return None
    place = _of_slurm(environment) or _of_open_mpi(environment)
    if place is None:
        return None
    own, processes = place
    if processes == 1:
        return ALL
    visible = _visible_gpus(environment)
    on_host = _number(environment.get("SLURM_GPUS_ON_NODE"))
    if visible and on_host and visible < on_host:  # the launcher has shared them out
        return ALL
    gpus = visible or on_host
    if gpus is None or gpus % processes:
        return None
    share = gpus // processes
    return list(range(own * share, (own + 1) * share))


def _of_slurm(environment: Variables) -> tuple[int, int] | None:
    """The number of this process on its host, and how many there are, as in "8(x2),4" for two hosts and a third."""
    own, node = _number(environment.get("SLURM_LOCALID")), _number(environment.get("SLURM_NODEID"))
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    counts: list[int] = []
    for part in tasks.split(","):
        if not (match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())):
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    if own is None or node is None or node >= len(counts) or own >= counts[node]:
        return None
    return own, counts[node]


def _of_open_mpi(environment: Variables) -> tuple[int, int] | None:
    own, count = (_number(environment.get(f"OMPI_COMM_WORLD_LOCAL_{what}")) for what in ("RANK", "SIZE"))
    return None if own is None or not count or own >= count else (own, count)


def _visible_gpus(environment: Variables) -> int | None:
    """How many the process may see, if that is said."""
    named = environment.get("CUDA_VISIBLE_DEVICES", "")
    return len([name for name in named.split(",") if name.strip()]) or None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
