"""The tokenizer: known ids, its rows, and what holds for every text."""

import html

import ftfy
import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text import tokenizer
from dinov3seg_jax.text.tokenizer import CONTEXT_LENGTH, END_ID, START_ID, VOCABULARY_SIZE, Tokenizer

DOG = [320, 1125, 539, 320, 1929]
ANY_TEXT = st.text(st.characters(), max_size=40)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("!", [256]),
        ("a photo of a dog", DOG),
        ("  A\tPHOTO\n of a  Dog ", DOG),
        ("a photo of a dog &amp;amp; dog", [*DOG, 261, 1929]),
        ("dog<|EndOfText|>dog", [1929, END_ID, 1929]),
    ],
)
def test_known_ids(text, ids):
    assert Tokenizer().encode(text) == ids


def test_digits_stand_alone_and_contractions_split():
    assert len(Tokenizer().encode("2024")) == 4
    assert Tokenizer().encode("dog's") == [1929, *Tokenizer().encode("'s")]


def test_row():
    rows = Tokenizer().tokenize(["a photo of a dog", ""])
    assert rows.shape == (2, CONTEXT_LENGTH)
    assert rows.dtype == np.int32
    assert rows[0].tolist() == [START_ID, *DOG, END_ID] + [0] * (CONTEXT_LENGTH - 7)
    assert rows[1].tolist() == [START_ID, END_ID] + [0] * (CONTEXT_LENGTH - 2)


def test_a_long_text_keeps_its_start_and_ends_with_the_end():
    assert Tokenizer().tokenize(["a photo of a dog"], 4).tolist() == [[START_ID, 320, 1125, END_ID]]


def test_no_texts():
    assert Tokenizer().tokenize([]).shape == (0, CONTEXT_LENGTH)


def test_one_string_is_not_a_list_of_characters():
    with pytest.raises(TypeError, match="list"):
        Tokenizer().tokenize("dog")


def test_a_row_has_room_for_start_and_end():
    with pytest.raises(ValueError, match="context_length is 1"):
        Tokenizer().tokenize(["dog"], 1)


def test_a_damaged_table_is_refused(monkeypatch):
    monkeypatch.setattr(tokenizer, "TABLE_SHA256", "0" * 64)
    with pytest.raises(UserError, match="damaged"):
        tokenizer._read_table()


def test_a_missing_table_is_refused(monkeypatch):
    monkeypatch.setattr(tokenizer, "TABLE_FILE", "absent.gz")
    with pytest.raises(UserError, match="install the package again"):
        tokenizer._read_table()


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(max_codepoint=255), max_size=40) | ANY_TEXT)
def test_plain_text_needs_no_repair(text):
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert tokenizer.clean(text) == regex.sub(r"\s+", " ", repaired).strip().lower()


@settings(deadline=None, max_examples=200)
@given(ANY_TEXT)
def test_every_text_has_ids_and_a_row(text):
    ids = Tokenizer().encode(text)
    assert all(0 <= token < VOCABULARY_SIZE for token in ids)
    assert Tokenizer().length(text) == len(ids) + 2
    row = Tokenizer().tokenize([text])[0]
    assert row[0] == START_ID
    assert END_ID in row


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("abcxyz019.-'", min_size=1, max_size=8), max_size=6), st.data())
def test_the_amount_and_kind_of_whitespace_do_not_matter(words, data):
    space = st.text(" \t\n\u3000", min_size=1, max_size=4)
    spread = "".join(data.draw(space) + word for word in words) + data.draw(space)
    assert Tokenizer().encode(spread) == Tokenizer().encode(" ".join(words))


@settings(deadline=None, max_examples=50)
@given(st.text("ABCxyz -'", max_size=20))
def test_case_does_not_matter(text):
    assert Tokenizer().encode(text.upper()) == Tokenizer().encode(text.lower())
