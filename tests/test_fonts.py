"""Names are drawn with a font that has their letters, where there is one."""

from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax import fonts
from dinov3seg_jax.visualize import legend, palette

GREEK, CHINESE = "χόρτο", "草地"


@pytest.fixture
def files(monkeypatch):
    """Fonts that have only Greek, only Chinese, and both; the order is that of preference."""
    letters = {"greek.ttf": GREEK, "chinese.ttf": CHINESE, "both.ttf": GREEK + CHINESE}
    monkeypatch.setattr(fonts, "_files", lambda: tuple(map(Path, letters)))
    monkeypatch.setattr(fonts, "_has", lambda file, letter: letter in (letters[str(file)] if file else "abcdefgh"))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("text", "line", "file"),
    [
        ("bed", "bed", None),
        ("Straße\n Ål", "Strasse Al", None),
        (GREEK, GREEK, Path("greek.ttf")),
        (CHINESE, CHINESE, Path("chinese.ttf")),
        (f"{GREEK} {CHINESE}", f"{GREEK} {CHINESE}", Path("both.ttf")),
        (f"{CHINESE} ж", f"{CHINESE} ж", Path("chinese.ttf")),
        ("ж", "ж", None),
        ("bad\udcff", "bad?", None),
    ],
)
def test_the_first_font_with_all_letters(text, line, file):
    assert fonts.drawable(text) == (line, file)


@pytest.mark.usefixtures("files")
def test_names_that_no_font_has():
    assert fonts.boxed(["bed", GREEK, "ж", f"ж {CHINESE}", "Ål"]) == ["ж", f"ж {CHINESE}"]


def test_pillows_own_font_has_latin_letters_and_no_others():
    assert not fonts._lacking(None, "the quick brown fox, 12 times!")
    assert fonts._lacking(None, GREEK) == len(set(GREEK))


def test_files_that_are_no_fonts_have_no_letters(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    assert not fonts._has(tmp_path / "a.ttf", "a")


def test_upright_and_wide_families_come_first():
    names = ["Zapf.ttf", "NotoSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSans.ttf", "NotoSans-Regular.ttf"]
    ordered = [path.name for path in sorted(map(Path, names), key=fonts._rank)]
    assert ordered[:3] == ["NotoSans-Regular.ttf", "DejaVuSans.ttf", "Zapf.ttf"]


def test_letters_of_other_scripts_are_no_boxes():
    """With whatever fonts this computer has."""
    line, file = fonts.drawable(GREEK)
    if file is None:
        pytest.skip("no font with Greek letters is installed")
    assert line == GREEK
    drawn, boxes = (legend([name], palette(1), 300) for name in (GREEK, fonts.MISSING * len(GREEK)))
    assert not np.array_equal(drawn, boxes)
