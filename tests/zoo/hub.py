"""A small Hugging Face hub on loopback, with faults on request: no test needs the network."""

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Hub:
    """What it serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path, such as "/org/name/resolve/main/file"
    redirects: dict[str, str] = field(default_factory=dict)  # path -> address
    faults: list[str] = field(default_factory=list)  # for the next requests: "503", "cut", "slow"; "" for none
    gated: bool = False
    ranges: bool = True
    etag: bool = True
    digest: str | None = ""  # in X-Linked-Etag; "" the true one, None none
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    url: str = ""
    pause: float = 0.0  # seconds after each 64 KiB


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        self.hub.requests.append(("HEAD", self.path, dict(self.headers)))
        self._plain(405)

    def do_GET(self):
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append(("GET", path, {key.lower(): value for key, value in self.headers.items()}))
        fault = hub.faults.pop(0) if hub.faults else ""
        if fault == "503":
            return self._plain(503)
        if hub.gated and "authorization" not in hub.requests[-1][2]:
            return self._plain(401, {"X-Error-Code": "GatedRepo"})
        if path in hub.redirects:
            content = next(iter(hub.files.values()), b"")
            return self._plain(302, {"Location": hub.redirects[path], **self._digest(content)})
        if path not in hub.files:
            return self._plain(404)
        return self._send(hub.files[path], fault)

    def _send(self, content, fault):
        hub, begin, etag = self.hub, 0, f'"{hashlib.md5(content).hexdigest()}"'
        asked = self.headers.get("Range", "")
        if asked and hub.ranges and self.headers.get("If-Range", etag) == etag:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
        if begin >= len(content) > 0:
            return self._plain(416)
        self.send_response(206 if begin else 200)
        headers = self._digest(content) | ({"ETag": etag} if hub.etag else {})
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        for key, value in (headers | {"Content-Length": str(len(content) - begin)}).items():
            self.send_header(key, value)
        self.end_headers()
        body = content[begin:]
        if fault == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        with contextlib.suppress(OSError):  # who asked was killed
            for start in range(0, len(body), 2**16):
                self.wfile.write(body[start : start + 2**16])
                time.sleep(hub.pause)
        return None

    def _digest(self, content):
        digest = hashlib.sha256(content).hexdigest() if self.hub.digest == "" else self.hub.digest
        return {} if digest is None else {"X-Linked-Etag": f'"{digest}"', "X-Repo-Commit": "0" * 40}

    def _plain(self, status, headers=None):
        self.send_response(status)
        for key, value in ((headers or {}) | {"Content-Length": "0"}).items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def serving(**options) -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub(**options)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
