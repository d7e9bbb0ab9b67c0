"""One file, whole or not at all, whatever the server and the disk do."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.zoo import download as module
from dinov3seg_jax.zoo.download import Address, Refused, download
from tests.zoo.hub import serving

CONTENT = random.Random(0).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PATH = "/org/name/resolve/main/file.bin"
CHILD = """
import sys
from pathlib import Path
from dinov3seg_jax.zoo import download
download.BLOCK = 2**14
download.download(download.Address(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.0)


@pytest.fixture
def hub():
    with serving(files={PATH: CONTENT}) as hub:
        yield hub


def half(target, hub, **changes):
    """What a killed process leaves behind."""
    about = {"shown": hub.url + PATH, "size": len(CONTENT), "version": f'"{hashlib.md5(CONTENT).hexdigest()}"'}
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(CONTENT[:1_000_000])
    partial.with_name(partial.name + ".json").write_text(json.dumps(about | {"sha256": DIGEST} | changes))


def ranges(hub):
    return [headers.get("range") for _, _, headers in hub.requests]


def test_a_file_comes_whole_and_nothing_else_is_left(hub, tmp_path):
    download(Address(hub.url + PATH, sha256=DIGEST, size=len(CONTENT)), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert [method for method, _, _ in hub.requests] == ["GET"]  # HEAD, which signed links refuse, is not needed
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert len(hub.requests) == 1


def test_what_a_killed_process_got_is_gone_on_with(hub, tmp_path):
    half(tmp_path / "file.bin", hub)
    download(Address(hub.url + PATH + "?signature=other"), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(hub) == ["bytes=1000000-"]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"ranges": False}, {}),  # the server gives the whole file
        ({}, {"version": '"of an older file"'}),
        ({}, {"version": ""}),  # nothing to tell it by
        ({}, {"shown": "http://elsewhere/file.bin"}),
        ({}, {"sha256": "0" * 64}),  # the hub says another checksum than before
        ({}, {"size": 5}),
    ],
)
def test_another_file_is_not_gone_on_with(hub, tmp_path, options, changes):
    for option, value in options.items():
        setattr(hub, option, value)
    half(tmp_path / "file.bin", hub, **changes)
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_damaged_note_of_what_is_partial_begins_again(hub, tmp_path):
    half(tmp_path / "file.bin", hub)
    (tmp_path / "file.bin.partial.json").write_text("{")
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert ranges(hub) == [None]


def test_a_process_killed_before_the_last_rename_asks_nothing(hub, tmp_path):
    half(tmp_path / "file.bin", hub)
    (tmp_path / "file.bin.partial").write_bytes(CONTENT)
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert not hub.requests


def test_busy_servers_and_broken_connections_are_asked_again(hub, tmp_path):
    hub.faults = ["503", "cut", "503", "cut"]
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(hub)[:2] == [None, None]
    assert int(ranges(hub)[-1].removeprefix("bytes=").rstrip("-")) > 2_000_000


def test_a_server_that_stays_busy_is_left_alone(hub, tmp_path):
    hub.faults = ["503"] * 20
    with pytest.raises(UserError, match="answers 503.*it goes on where it stopped"):
        download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert len(hub.requests) == module.ATTEMPTS


def test_a_server_that_is_not_there(tmp_path):
    with serving() as gone:
        pass
    with pytest.raises(UserError, match="cannot be had now"):
        download(Address(gone.url + PATH), tmp_path / "file.bin")


def test_content_is_checked(hub, tmp_path):
    hub.digest = None
    with pytest.raises(UserError, match="damaged or another file.*is removed"):
        download(Address(hub.url + PATH, sha256="0" * 64), tmp_path / "file.bin")
    with pytest.raises(UserError, match="3,000,000 bytes, not 7"):
        download(Address(hub.url + PATH, size=7), tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_the_hubs_own_checksum_is_checked(hub, tmp_path):
    hub.digest = "1" * 64
    with pytest.raises(UserError, match="damaged or another file"):
        download(Address(hub.url + PATH), tmp_path / "file.bin")
    hub.requests.clear()
    with pytest.raises(UserError, match="another content than was published"):
        download(Address(hub.url + PATH, sha256=DIGEST), tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_a_partial_file_that_is_wrong_is_found_and_removed(hub, tmp_path):
    half(tmp_path / "file.bin", hub)
    (tmp_path / "file.bin.partial").write_bytes(bytes(1_000_000))  # as a power cut may leave it
    with pytest.raises(UserError, match="damaged"):
        download(Address(hub.url + PATH), tmp_path / "file.bin")
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_another_host_does_not_get_the_token(hub, tmp_path):
    with serving(files={"/blob": CONTENT}) as other:
        hub.redirects[PATH] = other.url + "/blob"
        download(Address(hub.url + PATH, token="secret"), tmp_path / "file.bin")
    assert hub.requests[0][2]["authorization"] == "Bearer secret"
    assert "authorization" not in other.requests[0][2]
    assert "secret" not in str(other.requests)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_refusals(hub, tmp_path):
    with pytest.raises(UserError, match="answers 404"):
        download(Address(hub.url + "/nothing"), tmp_path / "file.bin")
    with pytest.raises(UserError, match="is no address"):
        download(Address("ftp://127.0.0.1/x"), tmp_path / "file.bin")
    hub.gated = True
    with pytest.raises(Refused) as refused:
        download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert refused.value.gated


def test_no_room(hub, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(UserError, match="0.00 GB of room and 0.00 GB are needed"):
        download(Address(hub.url + PATH), tmp_path / "file.bin")


def test_a_disk_that_fills_up_keeps_what_came(hub, tmp_path):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n{CHILD}"
    command = [sys.executable, "-c", limited, hub.url + PATH, str(tmp_path / "file.bin")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert "cannot be written" in done.stderr
    assert "it goes on where it stopped" in done.stderr
    assert not (tmp_path / "file.bin").exists()
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(hub)[-1].startswith("bytes=")


def test_offline_mode(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert not hub.requests


def test_a_signed_links_secret_is_not_shown():
    assert Address("https://user:pw@host:8/a/b.pth?Signature=s#f").shown == "https://host:8/a/b.pth"


def _killed(hub, target, seconds):
    command = [sys.executable, "-c", CHILD, hub.url + PATH, str(target)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, stderr=subprocess.DEVNULL)
    partial, deadline = target.with_name(target.name + ".partial"), time.monotonic() + 30
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_byte(hub, tmp_path, seed):
    hub.pause = 0.01
    _killed(hub, tmp_path / "file.bin", random.Random(seed).uniform(0, 0.4))
    assert not (tmp_path / "file.bin").exists() or (tmp_path / "file.bin").read_bytes() == CONTENT
    hub.pause = 0.0
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(hub.requests) == 1 or ranges(hub)[-1] is not None


def test_killed_once(hub, tmp_path):
    hub.pause = 0.02
    _killed(hub, tmp_path / "file.bin", 0.2)
    assert not (tmp_path / "file.bin").exists()
    hub.pause = 0.0
    download(Address(hub.url + PATH), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert int(ranges(hub)[-1].removeprefix("bytes=").rstrip("-")) > 0
