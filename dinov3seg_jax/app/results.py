"""Answers on disk, for as long as somebody looks at them: memory stays free, and disk is bounded."""

import dataclasses
import json
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation

MOST_BYTES = 4 * 10**9  # of all answers together; the one looked at longest ago goes first
IDLE = 3600  # seconds without a look, after which an answer goes
VIEW = "view.json"
BIG = ("labels", "confidence", "scores")  # arrays of a result that lie beside it


@dataclasses.dataclass
class _Entry:
    session: str
    name: str
    folder: Path
    size: int
    used: float
    results: tuple[Segmentation, ...]  # whose arrays are read from disk as they are needed


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is kept of a question."""

    name: str  # of the picture's file
    results: tuple[Segmentation, ...]  # one for each list of names; none before anything was asked
    view: dict[str, Any]  # what the browser draws


class Results:
    """Keeps the last answer of each session, under a token that nobody guesses."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, idle: float = IDLE):
        """Keep them in a folder of one's own; see `MOST_BYTES` and `IDLE`."""
        self._folder, self._most_bytes, self._idle = folder, most_bytes, idle
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    def keep(self, session: str, name: str, results: Sequence[Segmentation], view: dict[str, Any]) -> str:
        """Keep an answer in place of the session's last one; returns its token."""
        token = secrets.token_urlsafe(16)
        folder = self._folder / token
        folder.mkdir(mode=0o700, parents=True)
        try:
            (folder / VIEW).write_text(json.dumps(view))
            image = _on_disk(folder / "image.npy", results[0].image) if results else None
            kept = tuple(
                dataclasses.replace(result, image=image, **_arrays(folder, number, result))
                for number, result in enumerate(results)
            )
            size = sum(path.stat().st_size for path in folder.iterdir())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._drop(other for other, entry in self._entries.items() if entry.session == session)
            self._entries[token] = _Entry(session, name, folder, size, time.monotonic(), kept)
            self._make_room()
        return token

    def find(self, token: str) -> Answer:
        """An answer.

        Raises:
            UserError: it is here no more.
        """
        with self._lock:
            entry = self._entries.get(token)
            if entry is not None:
                entry.used = time.monotonic()
                return Answer(entry.name, entry.results, json.loads((entry.folder / VIEW).read_text()))
        raise UserError("this answer was put away to make room; ask again")

    def forget(self, session: str) -> None:
        """Put away what a session has, as when its page is closed."""
        with self._lock:
            self._drop(token for token, entry in self._entries.items() if entry.session == session)

    def sweep(self) -> None:
        """Put away what nobody has looked at for long."""
        last = time.monotonic() - self._idle
        with self._lock:
            self._drop(token for token, entry in self._entries.items() if entry.used < last)

    def _make_room(self) -> None:
        by_use = sorted(self._entries, key=lambda token: self._entries[token].used)
        total = sum(entry.size for entry in self._entries.values())
        for token in by_use[:-1]:  # the newest stays in any case
            if total <= self._most_bytes:
                break
            total -= self._entries[token].size
            self._drop([token])

    def _drop(self, tokens: Any) -> None:
        for token in list(tokens):
            shutil.rmtree(self._entries.pop(token).folder, ignore_errors=True)


def _arrays(folder: Path, number: int, result: Segmentation) -> dict[str, np.ndarray | None]:
    given = {name: getattr(result, name) for name in BIG}
    return {
        name: None if array is None else _on_disk(folder / f"{name}_{number}.npy", array)
        for name, array in given.items()
    }


def _on_disk(path: Path, array: np.ndarray) -> np.ndarray:
    np.save(path, array)
    return np.load(path, mmap_mode="r")
