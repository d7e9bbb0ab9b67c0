"""Text embeddings on disk, found by everything that they were computed from, so that none can be out of date."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from jaxtyping import Float, Int

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.places import cache_folder
from dinov3seg_jax.text.tokenizer import PAD_ID, TABLE_SHA256

VERSION = 2  # raised whenever the same tokens and parameters give other embeddings
CHECKSUM_BYTES = 32
TOWER = "text/"


def checksums(parameters: Parameters) -> dict[str, str]:
    """Sha256 of the bytes of each array of the text tower, in hex: what a converted folder's manifest says too."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(value, np.float32).data).hexdigest()
        for name, value in parameters.items()
        if name.startswith(TOWER)
    }


def open_cache(
    model: ModelConfig,
    parameters: Parameters,
    known: Mapping[str, str] = MappingProxyType({}),
    tokenizer: str = TABLE_SHA256,
) -> "EmbeddingCache | None":
    """The cache for a text tower; None where it is off, or where other processes hold parts of the parameters.

    Args:
        model: whose text tower it is.
        parameters: of the model.
        known: their checksums, where a manifest says them, else none; computing them takes seconds for a large tower.
        tokenizer: its fingerprint.
    """
    folder = cache_folder()
    whole = all(getattr(value, "is_fully_addressable", True) for value in parameters.values())
    if folder is None or not whole:
        return None
    return EmbeddingCache(folder, model, known or checksums(parameters), tokenizer)


class EmbeddingCache:
    """One file for each class name: its mean embedding, by the tokens of its prompts.

    Tokens stand for name, templates, tokenizer and context length: what differs in any of these and still gives the
    same tokens has the same embedding. Files are written whole and carry a checksum, so any number of processes can
    share a folder; what cannot be read counts as absent, and a folder that cannot be written is done without.
    """

    def __init__(self, folder: Path, model: ModelConfig, arrays: Mapping[str, str], tokenizer: str = TABLE_SHA256):
        """Take what all names share.

        Args:
            folder: need not exist.
            model: the text tower's structure and arithmetic are part of the key.
            arrays: name -> sha256 of the parameters; those of the text tower count.
            tokenizer: its fingerprint.
        """
        shared = {
            "version": VERSION,
            "towers": model.towers,
            "tokenizer": tokenizer,
            "heads": model.text.heads,
            "dtype": model.dtype if model.float32_residual == "none" else f"{model.dtype}, float32 residual",
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "precision": jax.config.values["jax_default_matmul_precision"],
            "arrays": {name: arrays[name] for name in sorted(arrays) if name.startswith(TOWER)},
        }
        self.folder = folder / hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:32]

    def read(self, tokens: Int[np.ndarray, "p length"]) -> Float[np.ndarray, " d2"] | None:
        """The embedding of a name with these prompts, if it is there and undamaged."""
        try:
            content = self._path(tokens).read_bytes()
        except OSError:
            return None
        checksum, row = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if not row or hashlib.sha256(row).digest() != checksum:
            return None
        return np.frombuffer(row, "<f4").astype(np.float32)

    def write(self, tokens: Int[np.ndarray, "p length"], row: Float[np.ndarray, " d2"]) -> None:
        """Keep an embedding, if the disk allows it."""
        content = row.astype("<f4").tobytes()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(tokens), hashlib.sha256(content).digest() + content)
        except OSError:
            pass

    def _path(self, tokens: Int[np.ndarray, "p length"]) -> Path:
        used = tokens[:, : np.flatnonzero((tokens != PAD_ID).any(axis=0))[-1] + 1]  # padding depends on other names
        content = np.ascontiguousarray(used, "<i4")
        return self.folder / hashlib.sha256(f"{content.shape}".encode() + content.tobytes()).hexdigest()
