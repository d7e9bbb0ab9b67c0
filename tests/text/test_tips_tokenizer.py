import base64
import json
import sys

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.tips_tokenizer import TipsTokenizer
from tests.parity.fixtures import SHIPPED


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(base64.b64decode(json.loads((SHIPPED / "tips_tokenizer.json").read_text())["model_base64"]))
    return path


def test_package_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        TipsTokenizer(tmp_path / "tokenizer.model")


def test_file_missing(model):
    with pytest.raises(UserError, match="other.model cannot be read"):
        TipsTokenizer(model.with_name("other.model"))


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"no model", "is no SentencePiece model")])
def test_file_damaged(model, content, said):
    model.write_bytes(content)
    with pytest.raises(UserError, match=said):
        TipsTokenizer(model)


def test_other_sizes(model):
    with pytest.raises(UserError, match="holds 720 pieces, and the text tower knows 32000"):
        TipsTokenizer(model, 32000)


def test_other_ids(model, monkeypatch):
    import sentencepiece

    monkeypatch.setattr(sentencepiece.SentencePieceProcessor, "pad_id", lambda _: -1)
    with pytest.raises(UserError, match="another model's tokenizer"):
        TipsTokenizer(model)


def test_half_a_character(model):
    with pytest.raises(UserError, match="half a character"):
        TipsTokenizer(model).encode("\ud800")


def test_length_and_cut(model):
    tokenizer = TipsTokenizer(model)
    rows, padding = tokenizer.tokenize(["a photo of a cat.", "a"], 4)
    assert tokenizer.length("a photo of a cat.") == 6
    assert rows.tolist() == [[260, 290, 277, 260], [260, 0, 0, 0]]
    assert padding.tolist() == [[False] * 4, [False, True, True, True]]
