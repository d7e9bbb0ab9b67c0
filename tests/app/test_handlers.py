"""What happens on the page, without a page: mistakes are sentences, and never HTML that somebody typed."""

import types
from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax.app.asking import Asker
from dinov3seg_jax.app.limits import Limits
from dinov3seg_jax.app.models import Models
from dinov3seg_jax.app.results import Answer, Results
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.class_lists import ClassList

pytestmark = pytest.mark.slow
gradio = pytest.importorskip("gradio", reason="the extra 'app' is not installed")
SESSION = types.SimpleNamespace(session_hash="s")


@pytest.fixture
def handlers(tmp_path):
    from dinov3seg_jax.app.handlers import Handlers

    uploads = tmp_path / "uploads"
    uploads.mkdir()
    return Handlers(Asker(Models({"tiny": tmp_path}), Limits()), Results(tmp_path / "results"), uploads)


@pytest.fixture
def token(handlers):
    """Of an answer with two classes, and one that is unknown."""
    asked = ClassList.of("a, b", min_confidence=0.1)
    image = np.zeros((2, 3, 3), np.uint8)
    result = Segmentation(np.zeros((2, 3), np.int32), np.ones((2, 3), np.float32), asked.names, image)
    return handlers.results.keep("s", Answer("a.png", {}, "tiny", (asked,), (result,)))


def test_a_download_without_an_answer(handlers):
    with pytest.raises(gradio.Error, match="there is no answer yet; press Segment first"):
        handlers.download("", ["json"], "{}")
    preview = handlers.results.keep("s", Answer("a.png", {}))
    with pytest.raises(gradio.Error, match="there is no answer yet; press Segment first"):
        handlers.download(preview, ["json"], "{}")
    with pytest.raises(gradio.Error, match="this answer was put away to make room; ask again"):
        handlers.download("<script>", ["json"], "{}")


def test_a_notice_is_no_html(handlers, token):
    with pytest.raises(gradio.Error, match="there is no format &#x27;&lt;b&gt;&#x27;"):
        handlers.download(token, ["<b>"], "{}")


def test_a_dropped_file_is_an_upload(handlers):
    upload = handlers.files / "a" / "b.png"
    for path in ("/etc/passwd", "", str(handlers.files / ".." / "results"), 5):
        with pytest.raises(gradio.Error, match="this was not uploaded; drop a picture"):
            handlers.dropped(types.SimpleNamespace(_data={"path": path}))
    assert handlers.dropped(types.SimpleNamespace(_data={"path": str(upload)})) == str(upload)


def test_scores_of_what_has_none(handlers, token, monkeypatch):
    monkeypatch.setattr(Asker, "scores", lambda self, rgb, asked, model: np.full((2, 2, 3), 0.5, np.float32))
    assert handlers.heat([token, 0, 1])["width"] == 3
    assert handlers.heat([token, 0, 2]) == {"error": "this class has no score of its own; choose another"}
    assert handlers.heat([token, 1, 0]) == {"error": "there is no such answer; ask again"}
    assert handlers.heat([token, -1, 0]) == {"error": "there is no such answer; ask again"}


def test_without_a_picture(handlers):
    with pytest.raises(gradio.Error, match="there is no picture; upload one and give its path"):
        handlers.api_segment(None, "a", "", "mean", 0, "", "", "", ["json"], "", 0, 0.5, {})
    ((_, said),) = handlers.answer(None, "a", "", "mean", "", "tiny", SESSION)
    assert said == '<div class="sentence wrong">there is no picture; drop one first</div>'


def test_a_picture_that_is_taken_away(handlers, token):
    assert handlers.look(None, SESSION) == ("", '<div class="sentence"></div>')
    assert handlers.view(token) == {"error": "this answer was put away to make room; ask again"}


def test_a_file_that_is_no_picture(handlers, tmp_path):
    path = Path(handlers.files, "<b>.png")
    path.write_bytes(b"nothing")
    token, said = handlers.look(str(path), SESSION)
    assert token == ""
    assert "&lt;b&gt;.png is no picture that can be read" in said


def test_chips_are_text(handlers):
    assert handlers.chips("<b>|dog, sky", "<i>", "tiny") == (
        '<ul class="chips"><li>&lt;b&gt; (asked as &quot;&lt;b&gt; | dog&quot;)</li><li>sky</li>'
        "<li>background: &lt;i&gt;</li></ul>"
    )
    assert handlers.chips(" ", "", "tiny") == ""
    assert handlers.chips("@<b>", "", "tiny").startswith('<div class="sentence wrong">&#x27;@&lt;b&gt;&#x27; names')
