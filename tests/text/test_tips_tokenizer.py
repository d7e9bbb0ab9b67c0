import base64
import hashlib
import json
import sys

import pytest

from dinov3seg_jax.config import ModelConfig, TextConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.prompts import check_names
from dinov3seg_jax.text.tips_tokenizer import UNKNOWN_ID, TipsTokenizer
from dinov3seg_jax.text.tokenizers import open_tokenizer
from tests.parity.fixtures import SHIPPED


@pytest.fixture
def model(tmp_path):
    pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(base64.b64decode(json.loads((SHIPPED / "tips_tokenizer.json").read_text())["model_base64"]))
    return path


def test_package_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "tokenizer.model").write_bytes(b"some model")
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
    rows = tokenizer.tokenize(["a photo of a cat.", "a"], 4)
    assert tokenizer.length("a photo of a cat.") == 6
    assert rows.tolist() == [[260, 290, 277, 260], [260, 0, 0, 0]]
    assert tokenizer.ends(rows).tolist() == [4, 1]


def model_config(tokenizer, vocab_size=720):
    return ModelConfig(towers="tips", tokenizer=str(tokenizer), text=TextConfig(vocab_size=vocab_size))


def test_a_model_opens_its_file(model):
    assert open_tokenizer(model_config(model)).fingerprint == hashlib.sha256(model.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="holds 720 pieces, and the text tower knows 32000"):
        open_tokenizer(model_config(model, 32000))


def test_no_file_named():
    with pytest.raises(UserError, match=r"--config.model.tokenizer=tokenizer.model"):
        open_tokenizer(model_config(""))


def test_names_checked(model, monkeypatch):
    tokenizer = TipsTokenizer(model)
    assert check_names(["cat", "a dog"], tokenizer, context_length=64) == ("cat", "a dog")
    with pytest.raises(UserError, match="is empty"):
        check_names([" "], tokenizer, context_length=64)
    with pytest.raises(UserError, match="only 64 fit"):
        check_names(["zebra " * 40], tokenizer, context_length=64)
    monkeypatch.setattr(tokenizer, "encode", lambda text: [tokenizer._model.piece_to_id("\u2581"), UNKNOWN_ID])
    with pytest.raises(UserError, match="holds no sign that the model's tokenizer knows"):
        check_names(["\u5b57"], tokenizer, context_length=64)
