"""Which models are on this disk, and those of them that are loaded."""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3seg_jax.errors import UserError, did_you_mean, one_line
from dinov3seg_jax.inference.load import way_of
from dinov3seg_jax.store.folder import ModelFolder, open_folder
from dinov3seg_jax.store.kept import is_kept
from dinov3seg_jax.store.released import RELEASED
from dinov3seg_jax.store.run import is_run

if TYPE_CHECKING:
    from dinov3seg_jax.inference.base import BaseSegmenter

RUNS = Path("runs")
LOADED = 2  # at most; the one that was asked longest ago goes first
WARM_SIZES = (480, 640), (640, 480)  # height and width of the pictures that programs are compiled for
WARM_NAMES = ("thing", "other thing")


def find_models(named: Iterable[Path] = (), runs: Path = RUNS) -> dict[str, Path | str]:
    """The models that can be chosen, by the names they are shown under, in the order in which they are offered.

    Args:
        named: on the command line; they come first.
        runs: a folder of runs.

    Raises:
        UserError: a named one is no model, or there is none at all.
    """
    found: dict[str, Path | str] = {}
    for path in named:
        folder = open_folder(path)
        way_of(folder)
        folder.config  # noqa: B018, which says what is wrong with it
        found[_new_name(folder.path.name or str(folder.path), found)] = path
    known = {_resolved(path) for path in found.values()}
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if is_run(path) and any(path.glob("checkpoints/*")) and path.resolve() not in known:
            found[_new_name(path.name, found)] = path
    for name, row in RELEASED.items():
        if row.use == "predict" and name not in found and is_kept(name):
            found[name] = name
    if not found:
        raise UserError(
            "there is no model here; name one with --checkpoint, train one (make quickstart), or fetch one (dinov3seg "
            "models lists them)."
        )
    return found


class Models:
    """Loads models when they are asked for, and keeps a few. One question at a time is on the device."""

    def __init__(self, found: dict[str, Path | str]):
        """Take what `find_models` found."""
        self._found = found
        self._loaded: OrderedDict[str, BaseSegmenter] = OrderedDict()
        self.device = threading.Lock()  # whoever computes holds it
        self.busy: dict[str, str] = {}  # what is being done to get a model ready, by its name
        self.broken: dict[str, str] = {}  # why one could not be loaded

    @property
    def names(self) -> list[str]:
        """Of all models, the first one is the default."""
        return list(self._found)

    def folder(self, name: str) -> ModelFolder:
        """Where a model lies.

        Raises:
            UserError: there is no such model.
        """
        if name not in self._found:
            shown = one_line(name, 60)
            raise UserError(
                f"there is no model '{shown}' here{did_you_mean(shown, self._found)}; choose one of "
                f"{', '.join(self._found)}"
            )
        return open_folder(self._found[name])

    def is_ready(self, name: str) -> bool:
        """Whether a question to it is answered without loading it first."""
        return name in self._loaded and name not in self.busy

    def loaded(self, name: str) -> "BaseSegmenter | None":
        """A model that is here already; it does not wait for the device, and is not to compute."""
        return self._loaded.get(name)

    def open(self, name: str) -> "BaseSegmenter":
        """A model, ready for questions.

        Raises:
            UserError: there is no such model, or it cannot be loaded.
        """
        folder = self.folder(name)
        with self.device:
            if name not in self._loaded:
                from dinov3seg_jax.inference.load import load

                while len(self._loaded) >= LOADED:
                    self._loaded.popitem(last=False)
                self._loaded[name] = load(folder.path)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def warm(self, name: str) -> None:
        """Load a model and compile its programs, in a thread of its own; `busy` says how far that is."""
        threading.Thread(target=self._warm, args=(name,), daemon=True).start()

    def _warm(self, name: str) -> None:
        started = time.perf_counter()
        try:
            self.busy[name] = f"{name} is being loaded"
            model = self.open(name)
            self.busy[name] = f"{name} compiles its programs"
            self._compile(model)
        except UserError as error:
            self.broken[name] = str(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{name} is ready, after {time.perf_counter() - started:.0f} s", flush=True)
        finally:
            del self.busy[name]

    def _compile(self, model: "BaseSegmenter") -> None:
        import numpy as np

        try:
            names = model.check_names(WARM_NAMES)
        except UserError:  # a head of its own names
            return
        for height, width in WARM_SIZES:
            with self.device:
                model.segment_arrays([np.full((height, width, 3), 128, np.uint8)], names)


def _new_name(name: str, taken: Iterable[str]) -> str:
    number, new = 2, name
    while new in taken:
        number, new = number + 1, f"{name} ({number})"
    return new


def _resolved(path: Path | str) -> Path:
    return open_folder(path).path.resolve()
