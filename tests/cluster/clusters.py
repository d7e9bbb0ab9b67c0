"""Ray clusters of this machine, on loopback, for tests."""

import os

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported: all listens on 127.0.0.1
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

STORE_BYTES = 10**8  # of objects that Ray holds in memory, the least it takes


def two_machines():
    """A cluster of two machines with one processor each, and the second of them."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    return cluster, cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
