"""Answers on disk, for as long as somebody looks at them: memory stays free, and disk is bounded."""

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.class_lists import ClassList

MOST_BYTES = 4 * 10**9  # of all answers together; the one looked at longest ago goes first
IDLE = 3600  # seconds without a look, after which an answer goes
VIEW = "view.json"
LABELS = np.int16  # more than any list has names


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is kept of a question.

    Attributes:
        name: of the picture's file.
        view: what the browser draws.
        model: that was asked; "" before one was.
        asked: each list of names; none before something was asked.
        results: one for each list.
        source: the picture's file, where it says what a result does not hold.
    """

    name: str
    view: dict[str, Any]
    model: str = ""
    asked: tuple[ClassList, ...] = ()
    results: tuple[Segmentation, ...] = ()
    source: Path | None = None


@dataclasses.dataclass
class _Entry:
    session: str
    folder: Path
    size: int
    used: float
    answer: Answer  # without its view; arrays are read from disk as they are needed


class Results:
    """Keeps the last answer of each session, under a token that nobody guesses."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, idle: float = IDLE):
        """Keep them in a folder of one's own; see `MOST_BYTES` and `IDLE`."""
        self._folder, self._most_bytes, self._idle = folder, most_bytes, idle
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    def keep(self, session: str, answer: Answer) -> str:
        """Keep an answer in place of the session's last one; returns its token."""
        token = secrets.token_urlsafe(16)
        folder = self._folder / token
        folder.mkdir(mode=0o700, parents=True)
        try:
            (folder / VIEW).write_text(json.dumps(answer.view))
            kept = dataclasses.replace(
                answer, view={}, results=_kept(folder, answer.results), source=_linked(folder, answer.source)
            )
            size = sum(path.stat().st_size for path in folder.iterdir())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._drop(other for other, entry in self._entries.items() if entry.session == session)
            self._entries[token] = _Entry(session, folder, size, time.monotonic(), kept)
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
                return dataclasses.replace(entry.answer, view=json.loads((entry.folder / VIEW).read_text()))
        raise UserError("this answer was put away to make room; ask again")

    def once(self, token: str, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that belongs to an answer, made when it is first asked for.

        Raises:
            UserError: the answer is here no more; or what `make` raises.
        """
        self.find(token)
        path = self._folder / token / f"{name}.npy"
        if not path.exists():
            array = make()
            with contextlib.suppress(OSError):  # the answer was put away meanwhile
                np.save(path.with_suffix(".new.npy"), array)
                os.replace(path.with_suffix(".new.npy"), path)
            return array
        return np.load(path, mmap_mode="r")

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

    def _drop(self, tokens: Iterable[str]) -> None:
        for token in list(tokens):
            shutil.rmtree(self._entries.pop(token).folder, ignore_errors=True)


def _kept(folder: Path, results: Sequence[Segmentation]) -> tuple[Segmentation, ...]:
    """The results, which have one picture, with their arrays on disk."""
    if not results:
        return ()
    image, kept = _on_disk(folder / "image.npy", results[0].image), []
    for number, result in enumerate(results):
        labels = _on_disk(folder / f"labels_{number}.npy", result.labels.astype(LABELS))
        confidence = _on_disk(folder / f"confidence_{number}.npy", result.confidence)
        kept.append(dataclasses.replace(result, image=image, labels=labels, confidence=confidence))
    return tuple(kept)


def _on_disk(path: Path, array: np.ndarray) -> np.ndarray:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def _linked(folder: Path, source: Path | None) -> Path | None:
    """A file that stays when the upload goes."""
    if source is None:
        return None
    place = folder / f"source{source.suffix}"
    os.link(source, place)
    return place
