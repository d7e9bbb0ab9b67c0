"""Which tokenizer a text tower reads with, and what all of them promise."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.text.tokenizer import Tokenizer


class TowerTokenizer(Protocol):
    """Text to rows of token ids. A row is filled up with zeros, which no text has."""

    fingerprint: str  # tells its ids from another's
    reserved: frozenset[int]  # ids that a name must not have

    def encode(self, text: str) -> list[int]:
        """Token ids, untruncated, without start and end."""

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
    return Tokenizer()
