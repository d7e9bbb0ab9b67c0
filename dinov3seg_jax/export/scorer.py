"""Runs what `dinov3seg export` wrote. It needs only JAX, NumPy, and flatbuffers, which `jax.export` reads with.

import dinov3seg_jax

scorer = dinov3seg_jax.load_exported("FOLDER")
scores = scorer(images)  # or scorer(images, text), with embeddings of other names
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import numpy as np

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import EXPORT_FILE, expanded
from dinov3seg_jax.places import local_copy

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, UInt8

VERSION = 1
WEIGHTS_FILE = "weights.npz"
EMBEDDINGS_FILE = "text.npy"


def load(folder: str | Path) -> "Scorer":
    """Open an exported model.

    Args:
        folder: what `dinov3seg export --out` named.

    Returns:
        A function of pictures; see `Scorer.__call__`. Its programs are compiled when they are first called.

    Raises:
        UserError: the folder holds no exported model, is damaged, or has another version of the format.
    """
    path = expanded(folder)
    if not (path / EXPORT_FILE).is_file():
        raise UserError(f"'{folder}' is no exported model (it has no {EXPORT_FILE}); run dinov3seg export.")
    path = local_copy(path)
    try:
        description = json.loads((path / EXPORT_FILE).read_text(encoding="utf-8"))
        version, files = description["version"], description["files"]
        wrong = [name for name, checksum in files.items() if checksum_of(path / name) != checksum]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{folder}' is damaged ({type(error).__name__}: {error}); export again.") from None
    if version != VERSION or wrong:
        what = f"is damaged ({wrong[0]} has changed)" if wrong else f"has version {version} of the format"
        raise UserError(f"'{folder}' {what}; export again.")
    try:
        return Scorer(path, description)
    except ImportError:
        raise UserError("reading an exported model needs flatbuffers; pip install flatbuffers.") from None


class Scorer:
    """Scores classes in pictures of the exported sizes.

    Attributes:
        sizes: of pictures, as (height, width) in pixels; there is a program for each.
        names: the classes whose embeddings were exported with the model; empty if none were.
        text: these embeddings, float32 [t, d2]; None if there are none.
    """

    def __init__(self, folder: Path, description: dict[str, Any]):
        """Read the weights and every program; a program is compiled when it is first called."""
        self.sizes = [(height, width) for height, width in description["sizes"]]
        self.names = tuple(description["names"])
        self.text = np.load(folder / EMBEDDINGS_FILE) if self.names else None
        self._classes, self._width = description["classes"], description["text_width"]
        with np.load(folder / WEIGHTS_FILE) as stored:
            self._weights = {name: jax.device_put(stored[name]) for name in stored.files}
        self._programs = {size: _read_program(folder / f"{size_name(size)}.bin") for size in self.sizes}

    def __call__(
        self,
        images: UInt8[np.ndarray, "b height width 3"],
        text: Float[np.ndarray, "t d2"] | None = None,
        class_mask: Bool[np.ndarray, " t"] | None = None,
    ) -> Float[Array, "b t h w"]:
        """Score every class everywhere.

        Args:
            images: RGB, 0 to 255, already resized to one of `sizes`.
            text: class embeddings; default `self.text`.
            class_mask: False for rows of `text` that only fill it up, so that lists share a program; default all True.

        Returns:
            Scores in [0, 1]. Their grid is coarser than the pictures, unless inference.fusion was "logits".

        Raises:
            UserError: the pictures have another size or type, the embeddings have another shape, or there are none.
        """
        program = self._programs.get(images.shape[1:3]) if images.ndim == 4 and images.dtype == np.uint8 else None
        if program is None or images.shape[3] != 3:
            known = ", ".join(f"[b, {height}, {width}, 3]" for height, width in self.sizes)
            raise UserError(f"the pictures are {images.dtype} {list(images.shape)}; give RGB bytes, uint8 {known}.")
        text = self.text if text is None else text
        if text is None:
            raise UserError("no names were exported with this model; give the embeddings of yours.")
        if text.ndim != 2 or text.shape[1] != self._width or self._classes not in (None, len(text)):
            wanted = [self._classes or "t", self._width]
            raise UserError(f"the embeddings are {list(text.shape)}; this model takes {wanted[0]} rows of {wanted[1]}.")
        mask = np.ones(len(text), bool) if class_mask is None else class_mask
        return program(self._weights, images, np.asarray(text, np.float32), mask)


def size_name(size: tuple[int, int]) -> str:
    """How a size is written, the height first; its program's file is named after it."""
    return f"{size[0]}x{size[1]}"


def checksum_of(path: Path) -> str:
    """Sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_program(path: Path) -> Callable[..., Array]:
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
