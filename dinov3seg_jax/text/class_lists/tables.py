"""Class lists as tables: CSV, also with semicolons, and TSV."""

import csv
import re
from collections.abc import Mapping, Sequence

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists.marks import unmarked
from dinov3seg_jax.text.class_lists.named import NamedClass, said_in
from dinov3seg_jax.text.class_lists.plain import COMMENT, read_plain

# Columns that hold names, by how sure that is; compared without case, blanks and underscores.
HEADERS = ("name", "classname", "class", "label", "labelname", "names", "classes", "labels", "category", "title")
CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))  # of a class's colour
NUMBER = re.compile(r"[-+]?\d*\.?\d*(?:[eE][-+]?\d+)?%?|#[0-9a-fA-F]{6}|\(?\d+\s*[, ]\s*\d+\s*[, ]\s*\d+\)?")


def is_table(text: str) -> bool:
    """Whether every line has as many tabs; or as many commas or semicolons, with numbers between the same ones."""
    lines = _lines(text)
    if len(lines) < 2:
        return False
    counts = {line.count("\t") for line in lines}
    if len(counts) == 1 and counts != {0}:
        return True
    rows = _rows(lines)
    widths = {len(row) for row in rows}
    columns = zip(*(row for row in rows[1:]), strict=False)
    return len(widths) == 1 and widths != {1} and any(all(NUMBER.fullmatch(c) and c for c in col) for col in columns)


def read_table(text: str, source: str) -> list[str | NamedClass]:
    """The column of a table that holds names, and with a header what others say of the classes (`named.SAID`).

    Args:
        text: Rows; a header, and columns of numbers, may be there or not. A single row is a list.
        source: What an error calls it.

    Raises:
        UserError: No column holds names, or several could.
    """
    lines = _lines(text)
    if len(lines) <= 1:
        return [*unmarked(read_plain(text, source), source)]
    if all(line.rstrip().endswith(",") and "," not in line.rstrip()[:-1] for line in lines[:-1]):
        return [*unmarked(read_plain(text, source), source)]
    rows = _rows(lines)
    width = max(map(len, rows))
    columns = [[row[place].strip() if place < len(row) else "" for row in rows] for place in range(width)]
    words = [re.sub(r"[\s_\-]", "", column[0]).lower() for column in columns]
    for header in HEADERS:
        if header in words and (width > 1 or len(rows) > 1):
            names = columns[words.index(header)][1:]
            return _said(names, {word: column[1:] for word, column in zip(words, columns, strict=True)}, source)
    texts = [column for column in columns if not all(map(NUMBER.fullmatch, column[1:]))]
    has_header = any(
        not NUMBER.fullmatch(column[0]) and all(map(NUMBER.fullmatch, column[1:])) and any(column[1:])
        for column in columns
    )
    if len(texts) == 1:
        return [*map(_name, filter(None, texts[0][1 if has_header else 0 :]))]
    what = "no column of names" if not texts else f"{len(texts)} columns that could hold names"
    raise UserError(
        f"{source} has {what} (its first row is {', '.join(rows[0])!r}); give the column the header 'name', or write "
        "one name per line in a .txt file"
    )


def _name(cell: str) -> str:
    """A cell that lists other names of a class after commas or semicolons does so after commas."""
    return ", ".join(part.strip() for part in re.split("[,;]", cell) if part.strip())


def _said(names: Sequence[str], columns: Mapping[str, Sequence[str]], source: str) -> list[str | NamedClass]:
    """Names, and what the other columns say of them."""
    found: list[str | NamedClass] = []
    for place, cell in enumerate(names):
        if not cell:
            continue
        row = said_in({key: column[place] or None for key, column in columns.items()})
        for channels in CHANNELS:
            if "color" not in row and all(channel in columns for channel in channels):
                row["color"] = [columns[channel][place] for channel in channels]
        found.append(NamedClass.of_row({"name": _name(cell)} | row, source) if row else _name(cell))
    return found


def _lines(text: str) -> list[str]:
    return [line for line in text.lstrip("\ufeff").splitlines() if line.strip() and not COMMENT.match(line)]


def _rows(lines: Sequence[str]) -> list[list[str]]:
    """Cells, by the delimiter that divides all rows alike."""
    readings = {}
    for delimiter in ("\t", ",", ";"):
        rows = [row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if any(row)]
        readings[delimiter] = rows
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return rows
    return max(readings.values(), key=lambda rows: min(map(len, rows)))
