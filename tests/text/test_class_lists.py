"""Class lists in every common syntax: the right names, or both readings."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists import ClassList, NamedClass, names_of, parse_names

SCENE = ("grass", "wood", "blue ring")


@pytest.mark.parametrize(
    "text",
    [
        "grass, wood, blue ring",
        "grass,wood,,blue ring,",
        "grass, wood, and blue ring.",
        "grass. wood. blue ring.",
        "grass . wood . blue ring .",
        "grass . wood . blue ring",
        "grass。wood。blue ring。",
        "grass;wood;blue ring",
        "grass，wood， blue ring",
        "grass、wood、blue ring",
        "grass；wood；blue ring",
        "grass\twood\tblue ring",
        "grass\nwood\nblue ring\n",
        "grass\\nwood\\nblue ring",
        "grass,\nwood,\nblue ring",
        "grass, wood,\n blue ring",
        "grass.\nwood.\nblue ring.",
        "classes: grass, wood, blue ring",
        "names\ngrass\nwood\nblue ring",
        "0: grass, 1: wood, 2: blue ring",
        "1. grass 2. wood 3. blue ring",
        "(1) grass (2) wood (3) blue ring",
        "1) grass\n2) wood\n3) blue ring",
        "0 grass\n1 wood\n2 blue ring",
        "#1 grass, #2 wood, #3 blue ring",
        "1=wood,0=grass,2=blue ring",
        "grass: 0, wood: 1, blue ring: 2",
        "grass 0\nwood 1\nblue ring 2",
        "0\tgrass\n1\twood\n2\tblue ring",
        "- grass\n- wood\n- blue ring",
        "* grass\n• wood\n– blue ring",
        '"grass", "wood", "blue ring"',
        "'grass', 'wood', 'blue ring'",
        "“grass”, “wood”, “blue ring”",
        "# those of the scene\ngrass  # it is green\nwood\n\nblue ring\n",
        '["grass", "wood", "blue ring"]',
        "['grass', 'wood', 'blue ring']",
        "('grass', 'wood', 'blue ring')",
        "[grass, wood, blue ring]",
        "CLASSES = ('grass', 'wood', 'blue ring')",
        "dict_values(['grass', 'wood', 'blue ring'])",
        '{"0": "grass", "1": "wood", "2": "blue ring"}',
        "{2: 'blue ring', 1: 'wood', 0: 'grass'}",
        '{"grass": 0, "wood": 1, "blue ring": 2}',
        '[{"id": 7, "name": "grass"}, {"id": 9, "name": "wood"}, {"id": 3, "name": "blue ring"}]',
        '[[0, "grass"], [1, "wood"], [2, "blue ring"]]',
        '{"classes": [{"title": "grass"}, {"title": "wood"}, {"title": "blue ring"}]}',
        '{"images": [], "categories": [{"id": 1, "name": "grass", "supercategory": "stuff"},'
        ' {"id": 2, "name": "wood"}, {"id": 3, "name": "blue ring"}]}',
        '{"id2label": {"0": "grass", "1": "wood", "2": "blue ring"}}',
        '{"grass": [0, 255, 0], "wood": [9, 9, 9], "blue ring": [0, 0, 255]}',
        "names: [grass, wood, blue ring]",
        "path: ../data\nnames:\n  0: grass\n  1: wood\n  2: blue ring\n",
        "nc: 3\nnames:\n- grass\n- wood\n- blue ring\n",
        "id,name\n0,grass\n1,wood\n2,blue ring",
        "label,r,g,b\ngrass,0,255,0\nwood,9,9,9\nblue ring,0,0,255",
        "Idx\tRatio\tName\n1\t0.15\tgrass\n2\t0.10\twood\n3\t0.01\tblue ring",
    ],
)
def test_every_syntax(text, tmp_path):
    assert parse_names(text) == SCENE
    (tmp_path / "list.txt").write_text(text.replace("\\n", "\n"), encoding="utf-8")
    assert parse_names(f"@{tmp_path / 'list.txt'}") == SCENE


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.csv", "grass\nwood\nblue ring"),
        ("a.csv", "name\ngrass\nwood\nblue ring"),
        ("a.csv", "class\ngrass\nwood\nblue ring"),
        ("a.csv", "grass,wood,blue ring"),
        ("a.csv", "grass,\nwood,\nblue ring,"),
        ("a.csv", "id;name\n0;grass\n1;wood\n2;blue ring"),
        ("a.csv", "id,species\n0,grass\n1,wood\n2,blue ring"),
        ("a.csv", "0,grass\n1,wood\n2,blue ring"),
        ("a.csv", ",name\n0,grass\n1,wood\n2,blue ring"),
        ("a.csv", "Class Name,Color\ngrass,#00ff00\nwood,#112233\nblue ring,#0000ff"),
        ("a.csv", "grass,0,255,0\nwood,9,9,9\nblue ring,0,0,255"),
        ("a.csv", "name,id,category\ngrass,0,stuff\nwood,1,stuff\nblue ring,2,thing"),
        ("a.tsv", "id\tname\n0\tgrass\n1\twood\n2\tblue ring"),
        ("a.names", "grass\nwood\nblue ring"),
        ("a.yaml", "- grass\n- wood\n- blue ring"),
        ("a.yml", "0: grass\n1: wood\n2: blue ring"),
        ("a.yaml", "names: grass, wood, blue ring"),
        ("a.JSON", '["grass", " wood", "blue ring"]'),
    ],
)
@pytest.mark.parametrize("prefix", ["", "@"])
def test_every_kind_of_file(tmp_path, file, content, prefix):
    (tmp_path / file).write_text(content, encoding="utf-8-sig")
    assert parse_names(f"{prefix}{tmp_path / file}") == SCENE


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("rug, carpet\nwood\nwall", ("rug, carpet", "wood", "wall")),
        ("0:void\n1:wall,walls,brick wall", ("void", "wall, walls, brick wall")),
        ('"rug, carpet", wood', ("rug, carpet", "wood")),
        ("Idx\tName\n1\twall\n2\tbuilding;edifice", ("wall", "building, edifice")),
        ("C#\nF#", ("C#", "F#")),
        ("2 wheeler\n4 wheeler", ("2 wheeler", "4 wheeler")),
        ("3d printer, dog's bed, 12\" pipe", ("3d printer", "dog's bed", '12" pipe')),
        ("St. Bernard, dog", ("St. Bernard", "dog")),
        ("St. Bernard", ("St. Bernard",)),
        ("U.S. flag", ("U.S. flag",)),
        ("car/truck, t-shirt", ("car/truck", "t-shirt")),
        ("a & b, c &amp; d", ("a & b", "c & d")),
        ('["dog. cat"]', ("dog. cat",)),
        ('["building, edifice", "rug, carpet"]', ("building, edifice", "rug, carpet")),
        ("[no, yes, 'on']", ("no", "yes", "on")),
        ("dog.", ("dog",)),
    ],
)
def test_names_keep_what_is_theirs(tmp_path, content, names):
    (tmp_path / "list.txt").write_text(content, encoding="utf-8")
    assert parse_names(f"@{tmp_path / 'list.txt'}") == names


@pytest.mark.parametrize(
    "text",
    [
        "grass, wood; blue ring",
        "grass. wood. blue ring",
        "dog. cat",
        "Mr. Bean. dog.",
        "wood, grass. sky",
        "grass.wood",
        "grass / wood",
        "grass + wood",
        "- grass - wood",
        "rug, carpet\nbuilding, edifice",
        "grass;wood\nsky",
    ],
)
def test_two_readings_are_refused_with_both(text):
    with pytest.raises(UserError, match=r"can be read as \d class(es)? \(.*\), or as \d classes \(.*JSON list, \["):
        parse_names(text)


@pytest.mark.parametrize("text", ["grass | wood", "grass |wood, sky", "grass| wood", "grass ¦ wood", "| grass | wood"])
def test_bars_with_blanks_on_one_line_are_refused_with_both_readings(text):
    with pytest.raises(UserError, match=r"read as \d class.*or as \d classes.*no blanks around it, as 'grass.wood"):
        parse_names(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("dog|puppy, grass|lawn", [("dog", "puppy"), ("grass", "lawn")]),
        ("dog|puppy", [("dog", "puppy")]),
        ("dog|puppy;grass", [("dog", "puppy"), ("grass",)]),
        ("dog|puppy. grass|lawn.", [("dog", "puppy"), ("grass", "lawn")]),
        ("dog | puppy\ngrass | lawn\nsky", [("dog", "puppy"), ("grass", "lawn"), ("sky",)]),
        ("0: dog|puppy, 1: grass", [("dog", "puppy"), ("grass",)]),
        ('"dog"|"puppy, small", grass', [("dog", "puppy, small"), ("grass",)]),
        ("rug, carpet|mat\nwood", [("rug, carpet", "mat"), ("wood",)]),
        ('["dog｜puppy", "grass"]', [("dog", "puppy"), ("grass",)]),
        ('[{"name": "dog", "synonyms": ["puppy", "dog"]}, "grass"]', [("dog", "puppy"), ("grass",)]),
        ('[{"name": "dog", "synonyms": "puppy; hound"}]', [("dog", "puppy", "hound")]),
    ],
)
def test_several_names_of_a_class(text, names):
    assert [one.names for one in ClassList.of(text).classes] == names
    assert parse_names(text) == tuple(of_class[0] for of_class in names), "one of each, for a data set"


ROWS = (
    NamedClass(("dog", "puppy", "hound"), "a {} in a garden", "Hund", (170, 51, 0)),
    NamedClass(("grass",), "", "", (0, 128, 0)),
    NamedClass(("sky",)),
)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (
            "a.csv",
            "name,synonyms,prompt,display,color\ndog,puppy|hound,a {} in a garden,Hund,#aa3300\n"
            "grass,,,,green\nsky,,,,\n",
        ),
        (
            "a.csv",
            "name;synonyms;prompt;display;color\ndog;puppy, hound;a {} in a garden;Hund;170 51 0\n"
            "grass;;;;rgb(0,128,0)\nsky;;;;\n",
        ),
        (
            "a.json",
            '{"classes": [{"name": "dog", "synonyms": ["puppy", "hound"], "prompt": "a {} in a garden", '
            '"display": "Hund", "color": "#a30"}, {"name": "grass", "color": [0, 128, 0, 255]}, {"name": "sky"}]}',
        ),
        (
            "a.json",
            '{"categories": [{"id": 1, "name": "dog|puppy|hound", "prompt": "a {} in a garden", "display": "Hund", '
            '"color": [170, 51, 0]}, {"id": 2, "name": "grass", "color": [0.0, 0.5, 0.0]}, {"id": 3, "name": "sky"}]}',
        ),
        (
            "a.csv",
            "Name,Synonym,Prompt,Display Name,Colour\ndog,puppy|hound,a {} in a garden,Hund,#AA3300\n"
            "grass,,,,green\nsky,,,,\n",
        ),
        (
            "a.yaml",
            "- name: dog\n  synonyms: [puppy, hound]\n  prompt: a {} in a garden\n  display: Hund\n"
            "  color: '#aa3300'\n- name: grass\n  color: [0, 128, 0]\n- sky\n",
        ),
    ],
)
def test_what_files_say_of_a_class(tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert ClassList.of(tmp_path / file).classes == ROWS
    assert parse_names(str(tmp_path / file))[1:] == ("grass", "sky"), "names alone, for a data set"


def test_rows_in_python():
    rows = [{"title": "dog", "Colour": "red"}, {"id": 3, "name": "cat", "synonyms": ("kitten",)}, NamedClass(("sky",))]
    expected = (NamedClass(("dog",), color=(255, 0, 0)), NamedClass(("cat", "kitten")), NamedClass(("sky",)))
    assert ClassList.of(rows).classes == expected


def test_colours_by_name_and_in_three_columns(tmp_path):
    assert [one.color for one in ClassList.of('{"grass": [0, 255, 0], "wood": [9, 9, 9]}').classes] == [
        (0, 255, 0),
        (9, 9, 9),
    ]
    (tmp_path / "a.csv").write_text("label,r,g,b\ngrass,0,255,0\nwood,9,9,9", encoding="utf-8")
    assert [one.color for one in ClassList.of(tmp_path / "a.csv").classes] == [(0, 255, 0), (9, 9, 9)]


@pytest.mark.parametrize("color", ["#12345g", "grasgreen", "", [1, 2], [0, 0, 256], [0.5, 0.5, 2], [None] * 3, 7])
def test_what_is_no_colour(color):
    with pytest.raises(UserError, match="the color of 'dog' in the list of class names is .* no colour; write it as"):
        ClassList.of([{"name": "dog", "color": color}])


def test_an_unquoted_colour_of_yaml_is_no_silent_comment(tmp_path):
    (tmp_path / "a.yaml").write_text("- name: dog\n  color: #aa3300\n", encoding="utf-8")
    with pytest.raises(UserError, match="in quotes where a # begins it"):
        ClassList.of(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dog||puppy", "no name on one side of a '|'"),
        ("dog|", "no name on one side"),
        ([("dog", 3)], "give the names of a class as texts"),
        ([()], "give the names of a class as texts"),
        ([{"name": "dog", "synonyms": [3]}], r"gives 'dog' the synonyms \[3\]; give a list of texts"),
        ([{"name": "dog", "prompt": 3}], "gives a class the prompt 3; write a text"),
        ([{"color": "red"}], "must hold a JSON list of texts"),
    ],
)
def test_what_is_no_class(given, message):
    with pytest.raises(UserError, match=message):
        ClassList.of(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_confidence": 1.5}, "min_confidence is 1.5; give a number from 0 to 1"),
        ({"min_confidence": -0.1}, "from 0 to 1"),
        ({"min_confidence": float("nan")}, "min_confidence is nan"),
        ({"min_confidence": True}, "min_confidence is True"),
        ({"min_confidence": "0.3"}, "min_confidence is '0.3'"),
        ({"background": ""}, "in the background, the list of class names holds no class name"),
        ({"synonyms": "all"}, "synonyms is 'all'; choose 'mean' or 'best'"),
        ({"unknown": " "}, "name of what is unknown is ' '; give it a text"),
        ({"unknown": "Dog", "min_confidence": 0.1}, "would be called 'Dog', as a class is"),
        ({"unknown": "background", "background": "sky", "min_confidence": 0.1}, "would be called 'background'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        ClassList.of("dog, grass", **options)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", "Background"], "a class is called 'background'"),
        ([{"name": "dog", "display": "animal"}, {"name": "cat", "display": "animal"}], "several classes are shown as"),
        ([{"name": "crane", "prompt": "a crane lifts"}, {"name": "crane", "prompt": "a crane flies"}], "shown as"),
    ],
)
def test_classes_that_would_be_shown_alike(names, message):
    with pytest.raises(UserError, match=message):
        ClassList.of(names, background="sky")


def test_what_a_list_asks_and_answers():
    plain = ClassList.of("dog|puppy, grass")
    assert plain.is_plain
    assert (plain.names, plain.rows) == (("dog", "grass"), plain.classes)
    assert ClassList.of(plain, min_confidence=0, unknown="none") == ClassList.of(plain, unknown="none")
    assert ClassList.of(plain, min_confidence=0).is_plain

    best = ClassList.of("dog|puppy|Dog, grass", background="sky|cloud, sea", synonyms="best", min_confidence=0.2)
    assert best.names == ("dog", "grass", "background", "unknown")
    assert [row.names for row in best.rows] == [("dog",), ("puppy",), ("grass",), ("sky",), ("cloud",), ("sea",)]
    assert best.answers.tolist() == [0, 0, 1, 2, 2, 2]
    assert best.colors[2:].tolist() == [[64, 64, 64], [128, 128, 128]]
    np.testing.assert_array_equal(best.colors[:2], plain.colors)
    question = json.loads(json.dumps(best.question()))
    assert question["names"] == [{"name": "dog", "synonyms": ["puppy", "Dog"]}, "grass"]
    assert question["threshold"] == {"min_confidence": 0.2, "unknown": "unknown"}
    assert plain.question() == {
        "names": [{"name": "dog", "synonyms": ["puppy"]}, "grass"],
        "background": None,
        "use of synonyms": None,
        "threshold": None,
        "palette": None,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grass,\nwood\nsky", "lines with a comma at the end, as 'grass,'"),
        ("0: grass\nwood", "'0: grass' with a number and 'wood' without one"),
        ("0: grass, 0: wood", "gives the number 0 to 2 names"),
        ('{"0": "grass", "0": "wood"}', "holds '0' twice"),
        ("[1, 2]", "JSON list of texts"),
        ('["cat", 1]', "JSON list of texts"),
        ('{"animals": ["cat"], "plants": ["oak"]}', "JSON list of texts"),
        ('[{"id": 1}]', "JSON list of texts"),
        ("[[1, 2], [3, 4]]", "JSON list of texts"),
        ("{[1]: 2}", "JSON list of texts"),
        ("[grass", "not valid JSON"),
        ("{}", "holds no class name"),
        ("names:\n", "holds no class name"),
        ("grass, names.csv", "'names.csv' looks like a file"),
        ("classes.xlsx", "can be read as|looks like a file"),
    ],
)
def test_what_is_no_list(text, message):
    with pytest.raises(UserError, match=message):
        parse_names(text)


@pytest.mark.parametrize("content", ["species,kind\noak,tree\npine,tree", "1;grass;green\n2;wood;brown", "1,2\n3,4\n"])
def test_tables_without_a_column_of_names(tmp_path, content):
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="columns? .*names.*give the column the header 'name'"):
        parse_names(str(tmp_path / "a.csv"))


def test_a_file_is_found_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine.classes").write_text("grass\nwood", encoding="utf-8")
    (tmp_path / "wide.txt").write_text("grass\nwood", encoding="utf-16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [
        "mine.classes",
        "./mine.classes",
        "~/mine.classes",
        "@~/mine.classes",
        "wide.txt",
        str(tmp_path / "wide.txt"),
    ]
    assert {parse_names(path) for path in given} == {("grass", "wood")}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({1: "wood", 0: "grass"}, ("grass", "wood")),
        ({"grass": 0, "wood": 1}, ("grass", "wood")),
        (np.array(["grass", "wood"]), ("grass", "wood")),
        ((name for name in ["grass", "wood"]), ("grass", "wood")),
        (["rug, carpet"], ("rug, carpet",)),
        (["dog. cat"], ("dog. cat",)),
        ([("dog", "puppy"), "grass"], (("dog", "puppy"), "grass")),
        ("grass;wood", ("grass", "wood")),
        ([], ()),
    ],
)
def test_names_in_python(given, names):
    assert names_of(given) == names


def test_a_path_in_python(tmp_path):
    (tmp_path / "names").write_text("grass, wood", encoding="utf-8")
    assert names_of(Path(tmp_path / "names")) == ("grass", "wood")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"grass", "of the type bytes"),
        (None, "of the type NoneType"),
        (3, "of the type int"),
        ({"grass"}, "no order"),
        (["grass", 3], "class name 2 of 2 is of the type int"),
        ([["grass"]], "of the type list"),
        (np.array(3), "cannot be listed"),
        (["grass. wood. sky."], "reads as 3 names"),
        (["grass;wood"], "reads as 2 names"),
        ({0: 1}, "JSON list of texts"),
    ],
)
def test_what_is_no_list_in_python(given, message):
    with pytest.raises(UserError, match=message):
        names_of(given)


# Words, as no class is called by a number, an abbreviation or a heading alone.
WORDS = st.text("abcdefgh éü犬", min_size=3, max_size=9).map(lambda word: " ".join(word.split()))
NAME = WORDS.filter(lambda name: len(name) > 2)
NAMES = st.lists(NAME, min_size=2, max_size=6, unique=True).map(tuple)

SYNTAXES = {
    "commas": ", ".join,
    "semicolons": "; ".join,
    "wide commas": "，".join,
    "stops": lambda names: "".join(f"{name}. " for name in names),
    "spaced stops": lambda names: " . ".join(names) + " .",
    "lines": "\n".join,
    "bullets": lambda names: "\n".join(f"- {name}" for name in names),
    "numbers": lambda names: "\n".join(f"{place}. {name}" for place, name in enumerate(names, 1)),
    "ids": lambda names: "\n".join(f"{place}: {name}" for place, name in enumerate(names)),
    "ids in a line": lambda names: ", ".join(f"{place}: {name}" for place, name in enumerate(names)),
    "bare ids": lambda names: "\n".join(f"{place} {name}" for place, name in enumerate(names)),
    "quotes": lambda names: ", ".join(f'"{name}"' for name in names),
    "comments": lambda names: "# a list\n" + "".join(f"{name}  # comment\n" for name in names),
    "json": lambda names: json.dumps(names),
    "python": lambda names: str(list(names)),
    "tuple": str,
    "ids in json": lambda names: json.dumps(dict(enumerate(names))),
    "labels in json": lambda names: json.dumps({name: place for place, name in enumerate(names)}),
    "entries": lambda names: json.dumps([{"id": place, "name": name} for place, name in enumerate(names)]),
    "coco": lambda names: json.dumps({"categories": [{"id": place, "name": name} for place, name in enumerate(names)]}),
    "yaml": lambda names: "names:\n" + "".join(f"  {place}: {name}\n" for place, name in enumerate(names)),
    "csv": lambda names: "id,name\n" + "".join(f"{place},{name}\n" for place, name in enumerate(names)),
    "headless csv": lambda names: "".join(f"{place},{name}\n" for place, name in enumerate(names)),
    "tsv": lambda names: "name\tcount\n" + "".join(f"{name}\t{place}\n" for place, name in enumerate(names)),
}


@pytest.mark.parametrize("syntax", SYNTAXES)
@settings(deadline=None, max_examples=40)
@given(names=NAMES)
def test_printed_names_come_back(syntax, names):
    assert parse_names(SYNTAXES[syntax](names)) == names
