"""One start of a run at a time."""

import json
import threading

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.folders import children
from dinov3seg_jax.places import place
from dinov3seg_jax.training import lease
from dinov3seg_jax.training.lease import Lease, leased


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    monkeypatch.setattr(lease, "STALE", 0.6)
    monkeypatch.setattr(lease, "LOOKS", 0.02)


@pytest.fixture
def elsewhere(monkeypatch):
    """Leases that are made under it are another machine's."""

    def made(workdir):
        with monkeypatch.context() as patch:
            patch.setattr(lease, "_machine", lambda: "another")
            patch.setattr(lease.socket, "gethostname", lambda: "host-7")
            return Lease(workdir)

    return made


def leases(workdir):
    return [path.name for path in children(workdir) if path.name.startswith("lease")]


def test_a_run_is_had_while_it_trains_and_let_go(tmp_path):
    workdir = tmp_path / "runs" / "one"
    with leased(workdir) as held:
        assert leases(workdir) == ["lease.1"]
        held.confirm()
    assert leases(workdir) == []


def test_a_second_start_is_refused_while_the_first_lives(tmp_path, elsewhere, capsys):
    first = elsewhere(tmp_path)
    first.take()
    try:
        with pytest.raises(UserError, match=r"is being trained by process \d+ on host-7; wait until that ends, or end"):
            Lease(tmp_path).take()
    finally:
        first.release()
    assert "may be trained by process" in capsys.readouterr().err
    Lease(tmp_path).take()


def test_who_shows_no_sign_of_life_loses_it_and_notices(tmp_path, elsewhere, monkeypatch):
    first = elsewhere(tmp_path)
    monkeypatch.setattr(first, "_renew", lambda: None)  # as where its process is stopped
    first.take()
    second = Lease(tmp_path)
    second.take()
    assert leases(tmp_path) == ["lease.2"]
    second.confirm()
    with pytest.raises(UserError, match="is being trained by process"):
        first.confirm()
    first.release()
    second.confirm()
    second.release()
    assert leases(tmp_path) == []


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 1e6)
    owner = {"host": "here", "process": 2**22 + 1, "machine": lease._machine()}  # no process has this number
    (tmp_path / "lease.4").write_text(json.dumps(owner))
    held = Lease(tmp_path)
    held.take()
    assert leases(tmp_path) == ["lease.5"]
    held.release()


@pytest.mark.parametrize("content", [b"", b"[1", b"[1]", b"{}"])
def test_a_lease_that_says_nothing_is_watched_as_any_other(tmp_path, content):
    (tmp_path / "lease.1").write_bytes(content)
    held = Lease(tmp_path)
    held.take()
    assert leases(tmp_path) == ["lease.2"]
    held.release()


def of_ten_that_start_at_once(workdir):
    """How many have the run."""
    got, lost = [], []

    def start():
        one = Lease(workdir)
        try:
            one.take()
            got.append(one)
        except UserError:
            lost.append(one)

    threads = [threading.Thread(target=start) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in got:
        one.release()
    assert len(got) + len(lost) == 10
    return len(got)


def test_of_several_that_start_at_once_one_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "has_ended", lambda process: False)
    monkeypatch.setattr(lease, "STALE", 60)  # on a busy machine, who has it may be slow to show that it lives
    assert of_ten_that_start_at_once(tmp_path) == 1


def test_in_a_bucket_too(bucket, monkeypatch):
    monkeypatch.setattr(lease, "has_ended", lambda process: False)
    monkeypatch.setattr(lease, "STALE", 60)  # on a busy machine, who has it may be slow to show that it lives
    workdir = place(f"{bucket}/run")
    assert of_ten_that_start_at_once(workdir) == 1
    assert leases(workdir) == []
