"""TIPSv2's tokenizer: a SentencePiece model, which the release holds as `tokenizer.model`."""

import hashlib
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.files import expanded

CONTEXT_LENGTH = 64
PAD_ID, END_ID, UNKNOWN_ID, START_ID = range(4)
BLANK = "\u2581"  # what a SentencePiece model writes for a blank, and before each text
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # other letters stay as they are


class TipsTokenizer:
    """The tokenizer of one file. Its rows have neither start nor end; `fingerprint` is the file's sha256."""

    reserved = frozenset((PAD_ID, END_ID, START_ID))

    def __init__(self, path: str | Path, vocab_size: int | None = None):
        """Read a SentencePiece model; `vocab_size` is the text tower's, where it is known.

        Raises:
            UserError: the package or the file is missing, or the file is no such model or one of other ids.
        """
        content = _content(expanded(path))
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._model = _model(path, content)
        specials = tuple(getattr(self._model, f"{name}_id")() for name in ("pad", "eos", "unk", "bos"))
        if specials != (PAD_ID, END_ID, UNKNOWN_ID, START_ID):
            raise UserError(
                f"{path} is another model's tokenizer: its padding, end, unknown and start have the ids {specials}, "
                "and TIPSv2's have 0, 1, 2 and 3; use tokenizer.model of the TIPS release."
            )
        if vocab_size is not None and len(self._model) != vocab_size:
            raise UserError(
                f"{path} holds {len(self._model)} pieces, and the text tower knows {vocab_size}; "
                "use tokenizer.model of the TIPS release."
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, untruncated, without start and end; none for a text of blanks.

        Raises:
            UserError: the text is no valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"the text {text!a} holds half a character; type it anew.") from None
        return self._model.encode(text.translate(ASCII_LOWER), out_type=int, add_bos=False, add_eos=False)

    def knows(self, text: str) -> bool:
        """Whether any piece of a text has an id, if only those of its bytes, where the file has such."""
        return not {UNKNOWN_ID, self._model.piece_to_id(BLANK)}.issuperset(self.encode(text))

    def length(self, text: str) -> int:
        """Number of tokens a text takes in a row."""
        return len(self.encode(text))

    def tokenize(self, texts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> Int[np.ndarray, "n length"]:
        """Rows for the text tower, cut or filled up with zeros.

        Where a row ends follows from its own zeros. In the official code the flags of padding are all False where one
        text of a batch is too long.
        """
        rows = np.full((len(texts), context_length), PAD_ID, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)[:context_length]
            row[: len(ids)] = ids
        return rows

    def ends(self, rows: Int[np.ndarray, "n length"]) -> Int[np.ndarray, " n"]:
        """Number of tokens in each row."""
        return (rows != PAD_ID).sum(axis=1)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the path of TIPSv2's tokenizer.model."
        ) from error
    if not content:  # which the package takes for a model without pieces
        raise UserError(f"{path} is empty; download TIPSv2's tokenizer.model again.")
    return content


def _model(path: str | Path, content: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            "TIPSv2's tokenizer needs the package sentencepiece; install it with `pip install sentencepiece`."
        ) from None
    try:
        model = sentencepiece.SentencePieceProcessor()
        model.LoadFromSerializedProto(content)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no SentencePiece model ({one_line(error, 80)}); download TIPSv2's tokenizer.model again."
        ) from error
    return model
