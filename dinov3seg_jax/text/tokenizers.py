"""Which tokenizer a text tower reads with, and what all of them promise."""

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded
from dinov3seg_jax.text.tips_tokenizer import TipsTokenizer
from dinov3seg_jax.text.tokenizer import Tokenizer


class TowerTokenizer(Protocol):
    """Text to rows of token ids. A row is filled up with zeros, which no text has."""

    fingerprint: str  # tells its ids from another's
    reserved: frozenset[int]  # ids that a name must not have

    def encode(self, text: str) -> list[int]:
        """Token ids, untruncated, without start and end."""

    def knows(self, text: str) -> bool:
        """Whether it can tell any part of a text from others that it has never seen."""

    def length(self, text: str) -> int:
        """Number of tokens that a text takes in a row."""

    def tokenize(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "n length"]:
        """Rows for the text tower, int32."""

    def ends(self, rows: Int[np.ndarray, "n length"]) -> Int[np.ndarray, " n"]:
        """Number of tokens in each row, without what fills it up."""


def open_tokenizer(model: ModelConfig) -> TowerTokenizer:
    """The tokenizer of a model's text tower.

    Raises:
        UserError: it lies in a file that is not there, or not what it should be.
    """
    if model.towers != "tips":
        return Tokenizer()
    if not model.tokenizer:
        raise UserError(
            "TIPSv2's text tower needs the file of its tokenizer, which is not beside the weights; give it with "
            "--config.model.tokenizer=tokenizer.model, or convert the weights again together with it."
        )
    path = expanded(model.tokenizer)
    written = path.stat().st_mtime_ns if path.is_file() else 0
    return _of_file(str(path), model.text.vocab_size, written)


@functools.lru_cache(4)
def _of_file(path: str, vocab_size: int, _: int) -> TipsTokenizer:
    """Kept, as reading takes its time; `_` is when the file was written."""
    return TipsTokenizer(path, vocab_size)
