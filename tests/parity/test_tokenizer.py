"""The tokenizer gives the reference's ids, exactly."""

import functools
import json

import numpy as np
import pytest

from dinov3seg_jax.text import tokenizer
from dinov3seg_jax.text.tokenizer import Tokenizer
from tests.parity.fixtures import fixtures

FILES = fixtures("tokenizer_cases")


@functools.cache
def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


CASES = [
    pytest.param(load(path), case, id=f"{path.stem}-{number}")
    for path in FILES
    for number, case in enumerate(load(path)["cases"])
]


@pytest.mark.parametrize(("reference", "case"), CASES)
def test_case(reference, case):
    if "encode_ids" in case:
        assert Tokenizer().encode(case["text"]) == case["encode_ids"]
    if "truncated" in case:
        assert (Tokenizer().length(case["text"]) > reference["context_length"]) == case["truncated"]
    rows = Tokenizer().tokenize([case["text"]], reference["context_length"])
    np.testing.assert_array_equal(rows, [case["row77"]])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_constants(path):
    reference = load(path)
    known = {
        "vocab_size": tokenizer.VOCABULARY_SIZE,
        "sot": tokenizer.START_ID,
        "eot": tokenizer.END_ID,
        "pad": tokenizer.PAD_ID,
        "n_merges": tokenizer.MERGE_COUNT,
    }
    stated = known.keys() & reference.keys()
    assert {key: reference[key] for key in stated} == {key: known[key] for key in stated}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_short_context(path):
    reference = load(path)
    rows = reference.get("rows_context16_first8")
    if rows is None:
        pytest.skip("the file has no rows of another length")
    texts = [case["text"] for case in reference["cases"][: len(rows)]]
    np.testing.assert_array_equal(Tokenizer().tokenize(texts, len(rows[0])), rows)
