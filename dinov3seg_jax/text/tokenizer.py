"""CLIP's byte-level BPE: text to the token ids that dinov3.txt's text tower was trained on (DINOv3 specification).

The merge table is read on first use. Ids: 256 byte symbols, the same 256 as word ends, 48,894 merges, start, end.
"""

import functools
import gzip
import hashlib
import html
import itertools
from collections.abc import Sequence
from importlib import resources

import numpy as np
import regex
from jaxtyping import Int

from dinov3seg_jax.errors import UserError

START = "<|startoftext|>"
END = "<|endoftext|>"
START_ID = 49406
END_ID = 49407
PAD_ID = 0
VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77

TABLE_FILE = "bpe_simple_vocab_16e6.txt.gz"
TABLE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGE_COUNT = 48_894
WORD_END = "</w>"

_WORDS = regex.compile(
    rf"{regex.escape(START)}|{regex.escape(END)}"
    r"|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+"
    r"|\p{N}"
    r"|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_SPACES = regex.compile(r"\s+")


class Tokenizer:
    """CLIP's tokenizer. Cheap to make: every instance shares one lazily read table."""

    fingerprint = TABLE_SHA256
    reserved = frozenset((START_ID, END_ID))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` in [0, 49408), untruncated, without start and end.

        A literal `<|startoftext|>` or `<|endoftext|>` inside the text becomes that special id, as in CLIP's tokenizer.

        Args:
            text: Any string; lone surrogates and control characters are accepted.

        Returns:
            The ids; empty for text without a visible character.

        Raises:
            UserError: The merge table is missing or damaged.
        """
        return [token for word in _WORDS.findall(clean(text)) for token in _word_ids(word)]

    def knows(self, text: str) -> bool:
        """Whether any part of `text` has an id of its own: each byte has one."""
        return True

    def length(self, text: str) -> int:
        """Number of tokens `text` takes in a row, start and end included."""
        return len(self.encode(text)) + 2

    def tokenize(self, texts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> np.ndarray:
        """Rows for the text tower: start, ids, end, then zeros.

        A text that is too long keeps its first `context_length` ids, the last of which becomes the end.

        Args:
            texts: N strings.
            context_length: Length of a row, at least 2.

        Returns:
            int32 [N, context_length], values in [0, 49408).

        Raises:
            TypeError: `texts` is one string instead of a sequence of strings.
            ValueError: `context_length` leaves no room for start and end.
            UserError: The merge table is missing or damaged.
        """
        if isinstance(texts, str):
            raise TypeError("tokenize takes a sequence of texts: put the single text into a list")
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}, but start and end alone take 2")
        rows = np.full((len(texts), context_length), PAD_ID, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [START_ID, *self.encode(text), END_ID][:context_length]
            ids[-1] = END_ID
            row[: len(ids)] = ids
        return rows

    def ends(self, rows: Int[np.ndarray, "n length"]) -> Int[np.ndarray, " n"]:
        """Number of tokens in each row: the end token has the largest id."""
        return rows.argmax(axis=1) + 1


def _fix(text: str) -> str:
    import ftfy  # here, because few names need it and importing it takes a while

    return ftfy.fix_text(text)


def clean(text: str) -> str:
    """Repair mojibake, unescape HTML entities (twice: some are escaped twice), unify whitespace, lower the case."""
    plain = text.isascii() and text.isprintable() and "&" not in text  # nothing to repair, and ftfy takes its time
    repaired = text if plain else html.unescape(html.unescape(_fix(text)))
    return _SPACES.sub(" ", repaired).strip().lower()


@functools.lru_cache(maxsize=65_536)
def _word_ids(word: str) -> tuple[int, ...]:
    ids, ranks = _tables()
    if word in (START, END):
        return (ids[word],)
    symbols = [_byte_symbols()[byte] for byte in word.encode("utf-8")]
    symbols[-1] += WORD_END
    while len(symbols) > 1:
        best = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, MERGE_COUNT))
        if best not in ranks:
            break
        symbols = _merge(symbols, best)
    return tuple(ids[symbol] for symbol in symbols)


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of `pair`, from left to right."""
    merged: list[str] = []
    position = 0
    while position < len(symbols):
        if tuple(symbols[position : position + 2]) == pair:
            merged.append("".join(pair))
            position += 2
        else:
            merged.append(symbols[position])
            position += 1
    return merged


@functools.cache
def _byte_symbols() -> dict[int, str]:
    """One printable character per byte, in id order: printable bytes stand for themselves, the rest move above 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@functools.cache
def _tables() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Symbol to id, and pair of symbols to merge rank (lower merges first)."""
    lines = _read_table().split("\n")[1 : MERGE_COUNT + 1]  # the first line names the table's version
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    single = list(_byte_symbols().values())
    word_ends = [symbol + WORD_END for symbol in single]
    symbols = [*single, *word_ends, *(left + right for left, right in merges), START, END]
    return {symbol: i for i, symbol in enumerate(symbols)}, {pair: rank for rank, pair in enumerate(merges)}


def _read_table() -> str:
    table = resources.files(__package__) / TABLE_FILE
    try:
        packed = table.read_bytes()
    except OSError as error:
        raise UserError(f"the tokenizer's table {table} cannot be read; install the package again") from error
    if hashlib.sha256(packed).hexdigest() != TABLE_SHA256:
        raise UserError(f"the tokenizer's table {table} is damaged (wrong sha256); install the package again")
    return gzip.decompress(packed).decode("utf-8")
