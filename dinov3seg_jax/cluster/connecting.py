"""Reaching a Ray cluster, and what it has for workers; what cannot work is said before any work starts."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dinov3seg_jax.cluster import nodes
from dinov3seg_jax.errors import UserError, one_line

LOCAL, AUTO = "local", "auto"
MENDS = {
    AUTO: "start one, as with: ray start --head; or give --cluster local",
    "ray:": "check --cluster, and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if the cluster asks for a token",
}
CONNECT_SECONDS = 10
LOOK_SECONDS = 120  # in which a machine has imported JAX and said what it has
ACCELERATORS = ("GPU", "TPU")


class Workers(NamedTuple):
    """How many processes hold the model, and what each takes of its machine, by Ray's words: CPU, GPU, TPU."""

    number: int
    each: dict[str, float]
    beside: int  # on one machine, at most


def import_ray() -> Any:
    """Ray.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it tells its makers what it is used for
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(
            "--cluster needs Ray, which is not installed; install the extra 'cluster', as in "
            "pip install 'dinov3seg_jax[cluster]'"
        ) from None
    return ray


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster for as long as the block takes.

    Args:
        address: "local" starts one on this machine, "auto" finds the one that runs on it; else "HOST:PORT" of a head
            in the same network, or "ray://HOST:PORT" of its client server.

    Raises:
        UserError: Ray is missing, or there is no such cluster, or one of another version of Ray or Python.
    """
    ray = import_ray()
    if address != LOCAL:
        _reach(_noted_address(ray) if address == AUTO else address)
    try:
        ray.init(
            address, log_to_driver=False, logging_level="error", include_dashboard=False if address == LOCAL else None
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        mend = MENDS.get(address.partition("//")[0], "check --cluster")
        raise UserError(f"the cluster '{address}' cannot be used ({one_line(error, 200)}); {mend}") from error
    for name in ("ray", "ray.data"):  # a dead machine is told as one line, not as all errors that it led to
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield ray
    finally:
        ray.shutdown()


def _noted_address(ray: Any) -> str:
    """What "auto" stands for: what Ray's variable says, or its last start on this machine, which may have ended."""
    noted = os.environ.get("RAY_ADDRESS") or ray._private.services.find_bootstrap_address(None)
    if not noted:
        raise UserError(f"no Ray runs on this machine; {MENDS[AUTO]}")
    return noted


def _reach(address: str) -> None:
    """Raise a `UserError` where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"--cluster is '{address}'; give local, auto, HOST:PORT as in 10.0.0.2:6379, or ray://HOST:PORT"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nobody answers at {address} ({one_line(error, 100)}); check the address, and that the cluster runs"
        ) from error


def workers_of(ray: Any, each: dict[str, float]) -> Workers:
    """The workers that a cluster has room for.

    Args:
        ray: connected.
        each: what a worker takes; empty: an accelerator where there are some, else all processors of a machine.

    Raises:
        UserError: no machine has that.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not each:
        kind = next((kind for kind in ACCELERATORS if any(node.get(kind) for node in alive)), None)
        each = {kind: 1.0} if kind else {"CPU": min(node["CPU"] for node in alive if node.get("CPU"))}
    fitting = [min(int(node.get(kind, 0) // amount) for kind, amount in each.items()) for node in alive]
    if not sum(fitting):
        raise UserError(f"no machine of the cluster has {in_words(each)}, which a worker takes; change --worker")
    return Workers(sum(fitting), each, max(fitting))


def in_words(each: Mapping[str, float]) -> str:
    """What a worker takes, as in "1 GPU"."""
    return " and ".join(f"{amount:g} {kind}" for kind, amount in each.items())


def refuse_busy(ray: Any, workers: Workers) -> None:
    """Raise a `UserError` where other work has all that a worker would take: Ray would wait for its end."""
    free = ray.available_resources()
    if any(free.get(kind, 0) < amount for kind, amount in workers.each.items()):
        raise UserError(
            f"the cluster has no {in_words(workers.each)} free, which a worker takes; wait until other work "
            "ends, or change --worker"
        )


def check_nodes(ray: Any, weights: str, step: str, fingerprint: str, picture: str, probe: str) -> None:
    """Have every machine say what it has.

    Args:
        ray: connected.
        weights, step, picture, probe: as for `nodes.sees`.
        fingerprint: of the weights.

    Raises:
        UserError: one lacks the package, has another version of something, or does not see the paths.
    """

    def ask(*paths: str) -> tuple[dict[str, str], dict[str, str]]:  # travels as it is, to machines without the package
        from dinov3seg_jax.cluster import nodes

        return nodes.versions(), nodes.sees(*paths)

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = nodes.versions()
    paths = {weights: fingerprint, picture: "", probe: ""}
    look = ray.remote(num_cpus=0, max_retries=0)(ask)
    asked = [
        (
            node["NodeManagerHostname"],
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                weights, step, picture, probe
            ),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    for name, answer in asked:
        try:
            versions, found = ray.get(answer, timeout=LOOK_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise UserError(
                f"the machine {name} of the cluster says nothing in {LOOK_SECONDS} s; see its logs"
            ) from None
        except (ray.exceptions.RayError, ImportError) as error:
            reason = one_line(getattr(error, "cause", None) or error, 200)
            raise UserError(
                f"the machine {name} of the cluster has no dinov3seg_jax of this version ({reason}); install it there"
            ) from error
        if words := nodes.difference(own, versions):
            raise UserError(
                f"the machine {name} of the cluster has {words}; install there what is here, for equal results"
            )
        if wrong := next((path for path in paths if found[path] != paths[path]), None):
            found_there = found[wrong] if wrong != weights else "has other weights there, or none"
            raise UserError(
                f"the machine {name} of the cluster does not see {wrong} as this one does ({found_there}); use a "
                "folder that all machines share, or a bucket"
            )
