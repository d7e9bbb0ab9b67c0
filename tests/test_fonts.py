"""Names are drawn with fonts that have their letters, where there are some."""

from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax import fonts
from dinov3seg_jax.fonts import Run
from dinov3seg_jax.visualize import legend, palette

GREEK, CHINESE, HEBREW = "χόρτο", "草地", "כלב"
G, C, B, H = (Path(f"{name}.ttf") for name in ("greek", "chinese", "both", "hebrew"))
LETTERS = {None: "abcdefgh ", G: GREEK, C: CHINESE, B: GREEK + CHINESE + "åa ", H: HEBREW}


@pytest.fixture(autouse=True)
def forgetful():
    fonts._somewhere.cache_clear()
    yield
    fonts._somewhere.cache_clear()


@pytest.fixture
def files(monkeypatch):
    """Fonts that have only Greek, only Chinese, both, and Hebrew; the order is that of preference."""
    monkeypatch.setattr(fonts, "_files", lambda: (G, C, B, H))
    monkeypatch.setattr(fonts, "_has", lambda file, cluster: all(letter in LETTERS[file] for letter in cluster))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bed", [Run("bed", None)]),
        ("", []),
        ("bé\n édb", [Run("be edb", None)]),
        ("åa bed", [Run("åa", B), Run(" bed", None)]),
        (GREEK, [Run(GREEK, G)]),
        (CHINESE, [Run(CHINESE, C)]),
        (f"{GREEK} {CHINESE}", [Run(f"{GREEK} {CHINESE}", B)]),
        (f"{CHINESE} bed {GREEK}", [Run(CHINESE, B), Run(" bed ", None), Run(GREEK, G)]),
        (f"{CHINESE}ж", [Run(f"{CHINESE}ж", C)]),
        ("жb", [Run("жb", None)]),
        ("b\udcff", [Run("b?", None)]),
        (f"bed {HEBREW}", [Run("bed ", None), Run(HEBREW, H, True)]),
        (f"{HEBREW} bed", [Run("bed", None), Run(" ", None, True), Run(HEBREW, H, True)]),
        ("b\u202eed\u200b", [Run("bed", None)]),
    ],
)
def test_each_part_has_a_font_with_its_letters(text, parts):
    assert fonts.runs(text) == parts


@pytest.mark.usefixtures("files")
def test_names_that_no_font_has():
    names = ["bed", GREEK, "ж", f"ж {CHINESE}", "éd", f"{GREEK} {HEBREW} bed"]
    assert fonts.boxed(names) == ["ж", f"ж {CHINESE}"]


def test_marks_stay_with_their_letters():
    assert fonts.clusters("e\u0301a") == ["e\u0301", "a"]
    assert fonts.clusters("a👩\U0001f3fd\u200d🌾b") == (
        ["a", "👩\U0001f3fd\u200d🌾", "b"] if fonts.SHAPES else ["a", "👩\U0001f3fd", "\u200d", "🌾", "b"]
    )


def test_pillows_own_font_has_latin_letters_and_no_others():
    assert fonts._has(None, "the quick brown fox, 12 times!")
    assert not any(fonts._has(None, letter) for letter in GREEK)


def test_files_that_are_no_fonts_have_no_letters(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    assert not fonts._has(tmp_path / "a.ttf", "a")


def test_upright_and_wide_families_come_first():
    names = ["Zapf.ttf", "NotoSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSans.ttf", "NotoSans[wght].ttf"]
    ordered = [path.name for path in sorted(map(Path, names), key=fonts._rank)]
    assert ordered[:3] == ["NotoSans[wght].ttf", "DejaVuSans.ttf", "Zapf.ttf"]


@pytest.mark.parametrize("text", [GREEK, CHINESE, HEBREW, "कुत्ता", "สุนัข", "🐕"])
def test_letters_of_other_scripts_are_no_boxes(text):
    """With whatever fonts this computer has."""
    if fonts.boxed([text]):
        pytest.skip("no font with these letters is installed")
    assert "".join(run.text for run in fonts.runs(text)) == text
    drawn, boxes = (legend([name], palette(1), 300) for name in (text, fonts.MISSING * len(text)))
    assert not np.array_equal(drawn, boxes)
