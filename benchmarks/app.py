"""The app under load: many users at once against one, each asking again as soon as it has its answer.

    python -m benchmarks.app [--checkpoint runs/quickstart] [--users 20] [--seconds 300] [--picture examples/scene.png]

The app runs in a process of its own, and users speak to its API as a browser would. First one user asks for a tenth of
the time, then all of them for the whole. Prints one JSON object: for each, the answers, errors, and the median and 95th
percentile of the seconds for an answer; how many answers overtook one that was asked for earlier, among all; and the
megabytes of the app before and after.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import psutil

SCENE = Path(__file__).parent.parent / "examples" / "scene.png"
CLASSES = "striped green ball, striped green cross, blue ring, red box, grass, wood, sand"
PATIENCE = 600  # seconds for an answer
HALF_A_TURN = 0.5  # of answers: two that were asked for nearly together may come in either order


class Asked(NamedTuple):
    """One question: when it was asked and answered, and what went wrong."""

    start: float
    end: float
    error: str


def main() -> None:
    """Load an app and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="runs/quickstart")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--picture", type=Path, default=SCENE)
    options = parser.parse_args()
    with app(options.checkpoint, options.users) as (url, process):
        use(url, options.picture, 1, 1)  # compiles what is still to be compiled
        report: dict[str, Any] = {"megabytes_before": megabytes(process)}
        for name, users, seconds in (("one", 1, options.seconds / 10), ("all", options.users, options.seconds)):
            report[name] = {"users": users} | summary(use(url, options.picture, users, seconds))
        report["megabytes_after"] = megabytes(process)
    print(json.dumps(report, indent=1))


@contextlib.contextmanager
def app(checkpoint: str, users: int) -> Iterator[tuple[str, psutil.Process]]:
    """An app that is ready, with room for all users in its queue: its address and its process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["-m", "dinov3seg_jax", "app", "--checkpoint", checkpoint, "--port", port, "--queue", users]
    with subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not any("is ready" in line for line in process.stdout):
                sys.exit("error: the app did not start; see above")
            yield f"http://127.0.0.1:{port}/", psutil.Process(process.pid)
        finally:
            process.terminate()


def use(url: str, picture: Path, users: int, seconds: float) -> list[Asked]:
    """All questions of so many users."""
    asked: list[Asked] = []
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=one_user, args=(url, picture, end, asked)) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return asked


def one_user(url: str, picture: Path, end: float, asked: list[Asked]) -> None:
    """Upload a picture, and ask until the time is over."""
    with httpx2.Client(base_url=url, timeout=PATIENCE) as http:
        content = picture.read_bytes()
        path = http.post("gradio_api/upload", files={"files": (picture.name, content)}).json()[0]
        data: list[Any] = [{"path": path, "meta": {"_type": "gradio.FileData"}}, CLASSES]
        data += ["", "mean", 0, "", "", "", ["json"], "", 0, 0.55, {}]
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                error = ask(http, data)
            except httpx2.HTTPError as broken:
                error = repr(broken)
            asked.append(Asked(start, time.monotonic(), error))


def ask(http: httpx2.Client, data: list[Any]) -> str:
    """Wait for an answer; what went wrong, if something did."""
    begun = http.post("gradio_api/call/segment", json={"data": data})
    if begun.status_code != 200:
        return f"{begun.status_code}: {begun.text}"
    with http.stream("GET", f"gradio_api/call/segment/{begun.json()['event_id']}") as answer:
        event = ""
        for line in answer.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                event = value
            elif key == "data" and event == "complete":
                return ""
            elif key == "data" and event == "error":
                return value
    return "the stream ended without an answer"


def summary(asked: list[Asked]) -> dict[str, Any]:
    """What the questions say together."""
    seconds = [one.end - one.start for one in asked]
    errors = [one.error for one in asked if one.error]
    return {
        "answers": len(asked) - len(errors),
        "errors": len(errors),
        "first_error": errors[0] if errors else "",
        "p50_seconds": round(float(np.percentile(seconds, 50)), 3),
        "p95_seconds": round(float(np.percentile(seconds, 95)), 3),
        "overtaken": overtaken(asked),
    }


def overtaken(asked: list[Asked]) -> int:
    """Questions that were answered after one that was asked clearly later."""
    ordered = sorted(asked)
    turn = HALF_A_TURN * (ordered[-1].end - ordered[0].start) / len(ordered)
    return sum(
        any(later.start > one.start + turn and later.end < one.end for later in ordered[place + 1 :])
        for place, one in enumerate(ordered)
    )


def megabytes(process: psutil.Process) -> int:
    """That the app holds."""
    return process.memory_info().rss // 2**20


if __name__ == "__main__":
    main()
