"""The reference of the config: every option, its values, its default and a sentence."""

from dinov3seg_jax.config import Config
from docs.site import options


def test_every_option_has_a_sentence():
    missing = [
        f"{path}.{option.name}".lstrip(".")
        for path, section in options.sections(Config())
        for option in options.options(section)
        if not option.meaning
    ]
    assert not missing, "write a comment beside these in dinov3seg_jax/config.py"


def test_what_is_read_off_the_code():
    sections = dict(options.sections(Config()))
    assert list(sections)[:3] == ["", "model", "model.vision"]
    late = {option.name: option for option in options.options(sections["model.late"])}
    assert late["class_attention"].kind == "`linear`, `full`"
    assert late["window"][1:3] == ("whole number, 1 or more", 12)
    assert {option.name: option.default for option in options.options(sections["data.eval"])}["split"] == "eval"
    (short_side,) = [option for option in options.options(sections["data"]) if option.name == "short_side"]
    assert short_side.kind == "2 of: whole number, 1 or more"


def test_the_page():
    page = options.page()
    assert "| `inference.window` | whole number, 1 or more | `384` | side of a window in pixels |" in page
    assert "[§4](../method.md#4-late-refinement)" in page
    assert "see [inference](../inference.md)" in page
    assert '| `init_from` | text | `""` |' in page
