"""TIPSv2's tokenizer gives the reference's ids and flags, exactly."""

import base64
import functools
import json

import numpy as np
import pytest

from dinov3seg_jax.text.tips_tokenizer import CONTEXT_LENGTH, TipsTokenizer
from tests.parity.fixtures import fixtures

pytest.importorskip("sentencepiece")
FILES = fixtures("tips_tokenizer")


@functools.cache
def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The tokenizer of a fixture's model."""

    @functools.cache
    def read(path):
        model = tmp_path_factory.mktemp(path.stem) / "tokenizer.model"
        model.write_bytes(base64.b64decode(load(path)["model_base64"]))
        return TipsTokenizer(model, load(path)["settings"]["vocab_size"])

    return read


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cases(path, tokenizer):
    assert load(path)["settings"]["max_len"] == CONTEXT_LENGTH
    for case in load(path)["cases"]:
        assert tokenizer(path).encode(case["text"]) == case["ids"], case["text"]
        (row,) = rows = tokenizer(path).tokenize([case["text"]], CONTEXT_LENGTH)
        np.testing.assert_array_equal(row, case["row64"], err_msg=case["text"])
        assert CONTEXT_LENGTH - tokenizer(path).ends(rows)[0] == case["paddings_sum"], case["text"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_flags_are_each_rows_own(path, tokenizer):
    for name, batch in load(path).get("batches", {}).items():
        rows = tokenizer(path).tokenize(batch["texts"], CONTEXT_LENGTH)
        padding = np.arange(CONTEXT_LENGTH) >= tokenizer(path).ends(rows)[:, None]
        np.testing.assert_array_equal(rows, batch["tokens"], err_msg=name)
        np.testing.assert_array_equal(padding, batch["paddings_per_row"], err_msg=name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_prompts(path, tokenizer):
    described = load(path).get("zeroshot")
    if described is None:
        pytest.skip("the file has no prompts")
    for name, prompts in zip(described["names"], described["class_ids"], strict=True):
        ours = [tokenizer(path).encode(template.replace("{}", name)) for template in described["templates"]]
        assert ours == prompts, name
