"""Templates, class names and the refusal of names that cannot work."""

import hashlib
import json

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists import ClassList
from dinov3seg_jax.text.prompts import (
    PAPER,
    check_asked,
    check_names,
    fill,
    load_templates,
    parse_names,
    prompt_name,
    understood,
)
from dinov3seg_jax.text.tokenizer import Tokenizer
from dinov3seg_jax.text.vocabularies import load_vocabulary

IMAGENET_SHA256 = "aa4cbb34d2390d60cf8ec72adfc00e9ced47ed88747ba4c748d69782067b88b5"


def check(*names, **options):
    return check_names(names, Tokenizer(), **options)


def test_imagenet_templates_are_the_published_ones():
    templates = load_templates("imagenet_80")
    assert len(templates) == 80
    joined = "\n".join(template.replace("{}", "{0}") for template in templates)
    assert hashlib.sha256(joined.encode()).hexdigest() == IMAGENET_SHA256


def test_paper_template():
    assert load_templates("paper") == PAPER == ("A photo of a {} in the scene",)


def test_unknown_template_set():
    with pytest.raises(UserError, match="'clip'.*paper, imagenet_80"):
        load_templates("clip")


@pytest.mark.parametrize(
    ("name", "prompted"),
    [("bed ", "bed"), ("rug, carpet, carpeting", "rug"), ("a,b", "a,b"), (" door , gate", "door")],
)
def test_prompt_name(name, prompted):
    assert prompt_name(name) == prompted
    assert fill(PAPER[0], name) == f"A photo of a {prompted} in the scene"


def test_braces_in_a_name_are_text():
    assert fill("a {}.", "{0} {x}") == "a {0} {x}."


def test_a_template_without_a_slot_is_refused():
    with pytest.raises(UserError, match="no slot"):
        fill("a photo", "cat")


def test_good_names_come_back_stripped_and_in_order():
    assert check(" red circle", "grass ", "собака", "犬") == ("red circle", "grass", "собака", "犬")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "there is no class name"),
        (("cat", "  "), "class name 2 of 2"),
        (("\x00",), "class name 1 of 1"),
        ((", cat",), "class name 1 of 1"),
        (("cat", "dog", " Cat"), r"'Cat' appears twice, at places 1 and 3"),
        (("red  fox", "red fox"), "'red fox' appears twice"),
        (("end <|EndOfText|>",), "reserved"),
        (
            ("grass, lawn", "grass, meadow"),
            "'grass, lawn' and 'grass, meadow', at places 1 and 2, are asked alike, as 'grass'",
        ),
        (("grass", "grass, meadow"), "second can never win"),
        (("caf\u00e9", "cafe\u0301"), "asked alike, as 'cafe\u0301', so that"),
        (("salt & pepper", "salt &amp; pepper"), "asked alike, as 'salt &amp; pepper', so that"),
        (("dog's bed", "dog 's bed"), "asked alike"),
        (("gra\u200bss",), r"a character that nobody sees \(U\+200B\)"),
        (("grass\u00ad",), r"U\+00AD"),
        (("grass\nwood",), "several lines"),
        (("grass;wood",), "holds ';', which divides names"),
        (("grass｜wood",), "holds '｜', which divides names"),
        (("grass", "..."), "class name 2 of 2, '...', holds no letter or digit"),
    ],
)
def test_bad_names(names, message):
    with pytest.raises(UserError, match=message):
        check(*names)


@pytest.mark.parametrize(
    ("names", "background", "message"),
    [
        ("dog|puppy, puppy", (), "appears twice, at places 2 and 3"),
        ("dog|hound, Hound|cat", (), "'Hound' appears twice"),
        ("dog, grass", "sky, Grass", "the name 'Grass' of the background is asked as 'grass' is"),
        ("dog|hound", "hound", "of the background is asked as"),
        (
            [{"name": "crane", "prompt": "a {}"}, {"name": "CRANE", "prompt": "a {}", "display": "lifter"}],
            (),
            "have one prompt, 'a {}'",
        ),
        ([{"name": "dog", "prompt": "dog " * 80}], (), "makes a prompt of 82 tokens and only 77 fit"),
        ([{"name": "dog", "prompt": "a <|endoftext|>"}], (), "the prompt .* holds a token reserved"),
        ([{"name": "dog", "prompt": "a\u200b dog"}], (), r"the prompt of class name 1 of 1, 'dog', .*U\+200B"),
        ([{"name": "dog", "display": "a\ndog"}], (), "the display name of .* goes over several lines"),
    ],
)
def test_what_cannot_be_asked(names, background, message):
    with pytest.raises(UserError, match=message):
        check_asked(ClassList.of(names, background=background), Tokenizer())


def test_one_name_with_two_prompts_is_two_classes():
    rows = [{"name": "crane", "prompt": "the bird"}, {"name": "crane", "prompt": "the machine", "display": "lifter"}]
    asked = ClassList.of(rows)
    check_asked(asked, Tokenizer())
    assert asked.names == ("crane", "lifter")
    assert understood(asked) == '2 classes: crane (asked as "the bird"), lifter (asked as "the machine")'


def test_published_lists_are_taken_word_for_word():
    names = load_vocabulary("ade_847")  # where ten names share the prompt of another
    assert check_names(names, Tokenizer()) == tuple(name.strip() for name in names)
    with pytest.raises(UserError, match="asked alike"):
        check_names(names[:-1], Tokenizer())


def test_names_as_they_are_understood():
    assert understood(["grass"]) == "1 class: grass"
    assert understood(["rug, carpet", "wood"]) == '2 classes: "rug, carpet" (asked as "rug"), wood'
    asked = ClassList.of("dog|puppy, grass", background="sky, sea", min_confidence=0.25, unknown="none")
    said = '2 classes: dog (asked as "dog | puppy"), grass; background: sky, sea; none: below 0.25'
    assert understood(asked) == said
    long = understood([f"thing {place}" for place in range(100)])
    assert long.startswith("100 classes: thing 0, ")
    assert long.endswith("thing 57, ... 41 more ..., thing 99")


def test_a_name_may_fill_the_row_but_not_exceed_it():
    fitting = " ".join(["dog"] * (77 - Tokenizer().length(fill(PAPER[0], ""))))
    assert check(fitting) == (fitting,)
    with pytest.raises(UserError, match=r"78 tokens and only 77 fit; shorten it by 1 "):
        check("cat", fitting + " dog")
    with pytest.raises(UserError, match="only 8 fit"):
        check("traffic light", context_length=8)


def test_the_longest_template_counts():
    with pytest.raises(UserError, match="makes a prompt of 13 tokens"):
        check("dog", templates=("a {}", "a b c d e f g h i j {}"), context_length=12)


def test_names_on_the_command_line():
    assert parse_names("red circle, grass,, sky ,") == ("red circle", "grass", "sky")


@pytest.mark.parametrize("text", ["", " , ,"])
def test_no_names_on_the_command_line(text):
    with pytest.raises(UserError, match="holds no class name"):
        parse_names(text)


@pytest.mark.parametrize("prefix", ["", "@"])
def test_names_in_files(tmp_path, prefix):
    lines = tmp_path / "names.txt"
    lines.write_bytes("\ufeffrug, carpet\r\n\r\n犬 \r\n".encode())
    listed = tmp_path / "names.JSON"
    listed.write_text(json.dumps(["rug, carpet", " 犬"]), encoding="utf-8")
    assert parse_names(f"{prefix}{lines}") == parse_names(f"{prefix}{listed}") == ("rug, carpet", "犬")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\xfa", "not UTF-8"),
        ("a.txt", b" \n", "holds no class name"),
        ("a.json", b"[", "not valid JSON"),
        ("a.json", b'{"cat": [1]}', "JSON list of texts"),
        ("a.json", b'["cat", 1]', "JSON list of texts"),
    ],
)
def test_bad_files(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        parse_names(str(tmp_path / file))


@pytest.mark.parametrize("text", ["absent.txt", "@absent", "@", "@.", "@a\0b", "@" + "a" * 5000])
def test_files_that_cannot_be_read(text):
    with pytest.raises(UserError, match="cannot be read"):
        parse_names(text)
