"""Class lists as data: JSON, YAML, and what Python prints, in the layouts that data sets and tools use."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.text.class_lists.marks import unmarked
from dinov3seg_jax.text.class_lists.named import NamedClass, said_in
from dinov3seg_jax.text.class_lists.plain import read_plain

# Words under which files keep their list, and entries their name, the surest first.
LISTS = ("names", "classes", "class_names", "categories", "labels", "id2label", "label2id", "CLASSES", "vocabulary")
NAMES = ("name", "class_name", "label", "title", "class", "category", "Name", "readable")
ASSIGNED = re.compile(r"^\s*[A-Za-z_]\w*\s*=\s*(?=[\[({])")
KEYED = re.compile(rf"^\s*(?:{'|'.join(LISTS)})\s*:(?:\s*$|\s*[\[{{\n])", re.MULTILINE)
PRINTED = re.compile(r"dict_(?:keys|values)\((.*)\)", re.DOTALL)


def looks_structured(text: str) -> bool:
    """Whether a text is more than names: it opens with a bracket, or says what it lists."""
    text = text.strip().lstrip("\ufeff")
    opened = text[:1] in ("[", "{") and not re.match(r"\[\d+\]", text)
    tuple_of_texts = re.match(r"\(\s*['\"]", text) and text.endswith((")", "),"))
    return bool(opened or tuple_of_texts or ASSIGNED.match(text) or PRINTED.match(text) or KEYED.search(text))


def read_structured(text: str, source: str) -> list[str | NamedClass]:
    """The names in JSON, YAML or Python's notation.

    Raises:
        UserError: It is none of these, or says no list of names.
    """
    return names_in(_parse(text, source), source)


def names_in(found: Any, source: str) -> list[str | NamedClass]:
    """The names in plain data: a list of texts, of (number, name) or of {id, name}; names by number, or the reverse.

    Where a colour or anything else of `NamedClass` is said of one, it is a `NamedClass`.

    Raises:
        UserError: It is none of these.
    """
    if isinstance(found, str):  # as in YAML, names: grass, wood
        return [*unmarked(read_plain(found, source), source)]
    if isinstance(found, Mapping):
        return _in_mapping(found, source)
    if not isinstance(found, Sequence):
        _refuse(source)
    if all(isinstance(entry, str | Mapping) for entry in found):
        entries = (entry.strip() if isinstance(entry, str) else _in_entry(entry, source) for entry in found)
        return [entry for entry in entries if entry]
    pairs = [entry for entry in found if isinstance(entry, Sequence) and not isinstance(entry, str)]
    if len(pairs) == len(found) and all(len(pair) == 2 for pair in pairs):
        return _in_mapping(_unique([(number, name) for number, name in pairs], source), source)
    _refuse(source)


def _in_mapping(found: Mapping[Any, Any], source: str) -> list[str | NamedClass]:
    for word in LISTS:
        if word in found and not _is_number(found[word]):
            return names_in(found[word], source)
    if not found:
        return []
    if all(_is_number(key) for key in found):
        if all(isinstance(name, str) for name in found.values()):
            return [found[key].strip() for key in sorted(found, key=int)]
        if all(isinstance(entry, Mapping) for entry in found.values()):
            return [_in_entry(found[key], source) for key in sorted(found, key=int)]
    if all(isinstance(key, str) for key in found):
        if all(_is_number(number) for number in found.values()):
            return [name.strip() for name in sorted(found, key=lambda name: int(found[name]))]
        if all(_is_color(color) for color in found.values()):
            return [NamedClass.of({"name": name, "color": color}, source) for name, color in found.items()]
    _refuse(source)


def _in_entry(entry: Mapping[Any, Any], source: str) -> str | NamedClass:
    for word in NAMES:
        if isinstance(entry.get(word), str) and entry[word].strip():
            said = said_in(entry)
            return NamedClass.of_row({"name": entry[word]} | said, source) if said else entry[word].strip()
    if len(entry) == 1 and _is_number(next(iter(entry))) and isinstance(next(iter(entry.values())), str):
        return next(iter(entry.values())).strip()
    _refuse(source)


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) is not None
    )


def _is_color(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (3, 4)


def _refuse(source: str) -> NoReturn:
    raise UserError(
        f'{source} must hold a JSON list of texts, as ["cat", "dog"], or of {{"id": 0, "name": "cat"}}; write it so'
    )


def _parse(text: str, source: str) -> Any:
    text = text.strip().lstrip("\ufeff")
    text = ASSIGNED.sub("", text)
    if printed := PRINTED.fullmatch(text):
        text = printed[1]
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, source))
    except (ValueError, RecursionError) as error:
        json_error = error
    try:
        return ast.literal_eval(text.rstrip(";"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    import yaml  # here, as only few lists need it

    try:
        return _plain(yaml.compose(text, Loader=yaml.SafeLoader), source)
    except (yaml.YAMLError, RecursionError) as error:
        shown = json_error if text[:1] in ("[", "{") else error
        raise UserError(f"{source} is not valid JSON or YAML ({one_line(shown, 150)}); mend it") from error


def _plain(node: Any, source: str) -> Any:
    """YAML with every word as text, so that a class may be called "no"; numbers are known by their digits."""
    if node is None:
        return []
    if node.id == "mapping":
        return _unique([(_plain(key, source), _plain(value, source)) for key, value in node.value], source)
    if node.id == "sequence":
        return [_plain(entry, source) for entry in node.value]
    return node.value


def _unique(pairs: Sequence[tuple[Any, Any]], source: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str | int):
            _refuse(source)
        if key in found:
            raise UserError(f"{source} holds {key!r} twice; keep one of them")
        found[key] = value
    return found
