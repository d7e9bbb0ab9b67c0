"""What was given as class names, on a command line or in Python: and which syntax it is in."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import expanded
from dinov3seg_jax.text.class_lists.marks import unmarked
from dinov3seg_jax.text.class_lists.named import Given, NamedClass
from dinov3seg_jax.text.class_lists.plain import read_plain
from dinov3seg_jax.text.class_lists.structured import looks_structured, names_in, read_structured
from dinov3seg_jax.text.class_lists.tables import is_table, read_table

TABLES = (".csv", ".tsv")
DATA = (".json", ".yaml", ".yml")
LINES = (".txt", ".names", ".lst", ".list", ".labels")
OTHERS = (".xml", ".xlsx", ".xls", ".ods", ".docx", ".pdf", ".pbtxt", ".html", ".md", ".toml", ".ini", ".cfg", ".py")
NAME_FILES = (*TABLES, *DATA, *LINES)

Names = str | Path | Mapping[Any, Any] | Iterable[Given]
Found = str | NamedClass  # a class as it was written; a text may hold several names, see `named.BARS`


def parse_names(text: str) -> tuple[str, ...]:
    """Class names alone from a command line or a data set: one of each class, whatever else is said of it.

    Args:
        text: as for `parse_classes`.

    Returns:
        The names without outer whitespace, unchecked (see `prompts.check_names`).

    Raises:
        UserError: as for `parse_classes`.
    """
    return tuple(NamedClass.of(one).names[0] for one in parse_classes(text))


def parse_classes(text: str) -> tuple[Found, ...]:
    """Classes from a command line.

    Args:
        text: a list in any common syntax (see docs/class_lists.md), or a file with one: `@path`, or a path that ends
            in one of `NAME_FILES`.

    Raises:
        UserError: No name is left, the list can be read in two ways, or the file cannot be read.
    """
    path = _path_in(text)
    source = str(path) if path else "the list of class names"
    names = _read_file(path) if path else _read_text(text.replace("\\n", "\n"), source)  # as shells pass it on
    texts = [name for name in names if isinstance(name, str)]
    if not path and (file := next((name for name in texts if name.lower().endswith(NAME_FILES + OTHERS)), "")):
        raise UserError(
            f"the class name {file!r} looks like a file; give the file alone, as --classes @names.txt, with one name "
            f"per line, or as {', '.join(TABLES + DATA)}"
        )
    if not names:
        raise UserError(f"{source} holds no class name; give at least one")
    return tuple(names)


def names_of(names: Names) -> tuple[Given, ...]:
    """Classes that were given in Python.

    Args:
        names: text, as for `parse_classes`; the path of a file; names by their numbers, as {0: "grass"}, or numbers by
            their names; or a list. Each entry of a list is a name, a tuple of names of one class, a dictionary with the
            keys of `NamedClass.of_row`, or a `NamedClass`.

    Returns:
        The classes as they were given, unchecked (see `prompts.check_asked`).

    Raises:
        UserError: it is none of these.
    """
    if isinstance(names, str):
        return parse_classes(names)
    if isinstance(names, Path):
        return parse_classes(f"@{names}")
    if isinstance(names, Mapping):
        return tuple(names_in(dict(names), "the dictionary of class names"))
    if isinstance(names, bytes | bytearray | set | frozenset) or not isinstance(names, Iterable):
        why = ", which has no order" if isinstance(names, set | frozenset) else ""
        raise UserError(
            f'the class names are of the type {type(names).__name__}{why}; give a list of texts, as ["cat", "dog"]'
        )
    try:
        listed = tuple(names)
    except TypeError as error:  # as of NumPy's array of no axes
        raise UserError(f"the class names cannot be listed ({reason(error)}); give a list of texts") from error
    for place, name in enumerate(listed, start=1):
        if not isinstance(name, str | tuple | Mapping | NamedClass):
            raise UserError(
                f"class name {place} of {len(listed)} is of the type {type(name).__name__}, and no text; "
                'give a list of texts, as ["cat", "dog"]'
            )
    only = listed[0] if len(listed) == 1 else None
    if isinstance(only, str) and ", " not in only and len(parts := _certain_parts(only)) > 1:
        raise UserError(
            f"the list holds one text, {only!r}, which reads as {len(parts)} names; give each name by itself, as "
            f"[{', '.join(map(repr, parts[:2]))}, ...]"
        )
    return tuple(map(_as_given, listed))


def _as_given(name: Given) -> Given:
    if isinstance(name, Mapping):
        return names_in([dict(name)], "the list of class names")[0]
    return str(name) if isinstance(name, str) else name  # NumPy's texts are of another class


def _certain_parts(name: str) -> list[Found]:
    """The names in a text that is certainly a list; one of two readings may be the name itself."""
    try:
        return _read_text(name, "the name")
    except UserError:
        return [name]


def _path_in(text: str) -> Path | None:
    """The file that a text names, if it names one."""
    if text.startswith("@"):
        return expanded(text[1:])
    text = text.strip()
    if not text or any(sign in text for sign in ",;|\n[{"):
        return None
    if text.lower().endswith(NAME_FILES):
        return expanded(text)
    if "/" in text or re.search(r"\.\w+$", text):
        try:
            path = expanded(text)
            return path if path.is_file() else None
        except (OSError, ValueError):
            return None
    return None


def _read_file(path: Path) -> list[Found]:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) < 200 else f"{str(path)[:200]}..."
        raise UserError(f"the file of class names {shown} cannot be read ({reason(error)}); check the path") from error
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the file of class names {path} is not UTF-8 text; save it as UTF-8") from error
    source = f"the file of class names {path}"
    if path.suffix.lower() in DATA:
        return read_structured(text, source)
    if path.suffix.lower() in TABLES:
        return read_table(text, source)
    return _read_text(text, source)


def _read_text(text: str, source: str) -> list[Found]:
    if looks_structured(text):
        return read_structured(text, source)
    if is_table(text):
        return read_table(text, source)
    return [*unmarked(read_plain(text, source), source)]
