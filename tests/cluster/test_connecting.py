"""What a cluster lacks is one sentence before any work starts."""

import socket
import sys
import types

import pytest

from dinov3seg_jax.cluster import connecting, nodes
from dinov3seg_jax.cluster.connecting import Workers, check_nodes, connected, import_ray, refuse_busy, workers_of
from dinov3seg_jax.errors import UserError

OWN = {"Python": "3.11", "jax": "1.0", "source": "abc"}
SEEN = {"run": "digest", "a.png": "", "out/probe": ""}


class Errors:
    class RayError(Exception):
        pass

    class GetTimeoutError(RayError):
        pass


class Ray:
    """As far as it is asked."""

    exceptions = Errors

    def __init__(self, *resources, free=None, answer=None):
        self._nodes = [
            {"Alive": True, "Resources": found, "NodeID": f"{n + 1:056x}", "NodeManagerHostname": f"host{n}"}
            for n, found in enumerate(resources)
        ]
        self._free, self._answer = free, answer

    def nodes(self):
        return [*self._nodes, {"Alive": False, "Resources": {"GPU": 8.0}}]

    def available_resources(self):
        return self._free

    def remote(self, **_):
        return lambda function: self

    def options(self, **_):
        return types.SimpleNamespace(remote=lambda *_: None)

    def get(self, answer, timeout):
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="install the extra 'cluster'"):
        import_ray()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("here", "give local, auto, HOST:PORT"),
        ("10.0.0.2:", "give local, auto, HOST:PORT"),
        ("127.0.0.1:PORT", "nobody answers at 127.0.0.1:"),
        ("ray://127.0.0.1:PORT", "nobody answers at ray://127.0.0.1:"),
        ("127.0.0.1:99999", "nobody answers"),
    ],
)
def test_addresses_where_there_is_no_cluster(monkeypatch, address, message):
    monkeypatch.setattr(connecting, "import_ray", lambda: None)
    address = address.replace("PORT", str(free_port()))
    with pytest.raises(UserError, match=message), connected(address):
        raise AssertionError("went on")


@pytest.mark.parametrize(
    ("address", "mend"), [("auto", "start one, as with: ray start --head"), ("local", "check --cluster")]
)
def test_a_cluster_that_cannot_be_joined(monkeypatch, address, mend):
    def init(*_, **__):
        raise ConnectionError("Version mismatch:\n the cluster has Ray 1.0")

    monkeypatch.setattr(connecting, "import_ray", lambda: types.SimpleNamespace(init=init))
    monkeypatch.setattr(connecting, "_noted_address", lambda _: "127.0.0.1:1")
    monkeypatch.setattr(connecting, "_reach", lambda _: None)
    with pytest.raises(UserError, match=f"Version mismatch: the cluster has Ray 1.0.*{mend}"), connected(address):
        raise AssertionError("went on")


def test_the_cluster_of_this_machine_has_ended_or_never_began(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="nobody answers at 127.0.0.1:"), connected("auto"):
        raise AssertionError("went on")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: None)
    with pytest.raises(UserError, match="no Ray runs on this machine; start one"), connected("auto"):
        raise AssertionError("went on")


@pytest.mark.parametrize(
    ("machines", "each", "found"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], {}, Workers(3, {"CPU": 4.0}, 2)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 96.0, "GPU": 1.0}, {"CPU": 4.0}], {}, Workers(3, {"GPU": 1.0}, 2)),
        ([{"CPU": 200.0, "TPU": 4.0}] * 2, {}, Workers(8, {"TPU": 1.0}, 4)),
        ([{"CPU": 200.0, "TPU": 4.0}] * 2, {"TPU": 4.0}, Workers(2, {"TPU": 4.0}, 1)),
        ([{"GPU": 1.0}], {"GPU": 0.5}, Workers(2, {"GPU": 0.5}, 2)),
    ],
)
def test_the_workers_that_there_is_room_for(machines, each, found):
    assert workers_of(Ray(*machines), each) == found


def test_a_worker_that_fits_nowhere():
    with pytest.raises(UserError, match="no machine of the cluster has 2 GPU"):
        workers_of(Ray({"CPU": 8.0, "GPU": 1.0}, {"GPU": 1.0}), {"GPU": 2.0})


def test_no_accelerator_is_free():
    workers = Workers(4, {"GPU": 1.0}, 2)
    refuse_busy(Ray(free={"CPU": 1.0, "GPU": 1.0}), workers)
    with pytest.raises(UserError, match="no 1 GPU free"):
        refuse_busy(Ray(free={"CPU": 8.0}), workers)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((OWN | {"jax": "2.0"}, SEEN), "host0 of the cluster has jax 2.0 instead of 1.0"),
        ((OWN | {"source": "def"}, SEEN), "source def instead of abc"),
        (({"Python": "3.11"}, SEEN), "jax is missing instead of 1.0"),
        ((OWN, SEEN | {"run": "other"}), "does not see run as this one does \\(has other weights there, or none\\)"),
        ((OWN, SEEN | {"a.png": "is not there"}), "does not see a.png as this one does \\(is not there\\)"),
        ((OWN, SEEN | {"out/probe": "is not there"}), "does not see out/probe"),
        (
            Errors.RayError("No module named 'dinov3seg_jax'"),
            "host0 of the cluster has no dinov3seg_jax of this version",
        ),
        (Errors.GetTimeoutError(), "host0 of the cluster says nothing"),
    ],
)
def test_machines_that_are_not_like_this_one(monkeypatch, answer, message):
    monkeypatch.setattr(nodes, "versions", lambda: OWN)
    with pytest.raises(UserError, match=message):
        check_nodes(Ray({"CPU": 1.0}, answer=answer), "run", "newest", "digest", "a.png", "out/probe")


def test_machines_that_are(monkeypatch):
    monkeypatch.setattr(nodes, "versions", lambda: OWN)
    check_nodes(Ray({"CPU": 1.0}, answer=(OWN, SEEN)), "run", "newest", "digest", "a.png", "out/probe")


def test_what_a_machine_says_of_itself(tmp_path):
    assert set(nodes.PACKAGES) < nodes.versions().keys()
    (tmp_path / "probe").touch()
    found = nodes.sees(str(tmp_path / "run"), "7", str(tmp_path / "a.png"), str(tmp_path / "probe"))
    assert found[str(tmp_path / "a.png")] == "is not there"
    assert found[str(tmp_path / "probe")] == ""
    assert "does not exist" in found[str(tmp_path / "run")]
